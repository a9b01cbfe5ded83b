"""Sentences in two languages: every template has its 中文 with the same fields, and nothing bypasses the catalogue."""

import ast
import json

import pytest

from support.messages import (
    CALLS,
    ROOT,
    calls_of,
    catalogue,
    command_help,
    error_names,
    field_help,
    fields_of,
    source_files,
    templates,
)
from weitiao.core.errors import DataError, InvalidValue, RecipeError, message_of
from weitiao.core.messages import Message, joined, language, translate

FILES = source_files()


def test_message_is_rendered_in_the_language_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    template, chinese = next((k, v) for k, v in catalogue().items() if not fields_of(k))
    monkeypatch.setenv("WEITIAO_LANG", "en")
    message = Message(template)
    assert str(message) == template
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    assert str(message) == chinese == translate(template)


def test_language_comes_from_the_variable_then_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEITIAO_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language() == "zh"
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert language() == "en"
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    assert language() == "zh"


def test_record_of_a_message_is_restored() -> None:
    message = Message("{n:,} rows of {source}", n=1200, source=Message("{file} ({kind})", file="a.jsonl", kind="chat"))
    record = json.loads(json.dumps(message.as_json()))
    assert str(Message.from_json(record)) == str(message) == "1,200 rows of a.jsonl (chat)"
    assert str(Message.from_json("plain {text}")) == "plain {text}"


def test_joined_messages_keep_their_own_fields() -> None:
    both = joined("; ", [Message("{n} rows", n=1), Message("{n} files", n=2)])
    assert str(both) == "1 rows; 2 files" and str(Message.from_json(both.as_json())) == "1 rows; 2 files"


def test_errors_carry_their_message() -> None:
    error = DataError("{path}, line {line}: empty", path="a.csv", line=3)
    assert str(error) == "a.csv, line 3: empty" and message_of(error).fields["line"] == 3
    assert str(RecipeError(message_of(InvalidValue("{n} is too small", n=1)))) == "1 is too small"
    assert str(message_of(OSError("disk full {x}"))) == "disk full {x}"


def test_every_template_has_chinese_with_the_same_fields() -> None:
    known, every = catalogue(), templates()
    assert len(every) > 250, "too few templates were collected"
    missing = {text: place for text, place in every.items() if text not in known}
    assert not missing, f"{len(missing)} templates have no 中文 in locale/zh.json: {json.dumps(missing, indent=1)[:3000]}"
    wrong = {text: place for text, place in every.items() if fields_of(text) != fields_of(known[text])}
    assert not wrong, f"other fields in the 中文 than in the template: {wrong}"


def test_every_help_text_has_chinese() -> None:
    known, every = catalogue(), {**field_help(), **command_help()}
    assert len(every) > 150, "too few help texts were collected"
    missing = {text: place for text, place in every.items() if text not in known}
    assert not missing, f"{len(missing)} help texts have no 中文 in locale/zh.json: {json.dumps(missing, indent=1)[:3000]}"


def test_catalogue_has_no_entry_without_a_source() -> None:
    unused = catalogue().keys() - templates().keys() - field_help().keys() - command_help().keys()
    assert not unused, f"nothing in the source says: {sorted(unused)[:20]}"


def test_chinese_is_chinese() -> None:
    same = [text for text, chinese in catalogue().items() if not any("\u4e00" <= x <= "\u9fff" for x in chinese)]
    assert len(same) < 15, f"no Han character in the 中文 of: {same}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_are_templates_never_glued_text(path) -> None:
    """What is raised or shown is a constant template with fields (or a Message made elsewhere), not an f-string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in calls_of(tree, CALLS | error_names()):
        for argument in call.args[:1]:
            glued = isinstance(argument, (ast.JoinedStr, ast.BinOp))
            assert not glued, f"{path.name}:{call.lineno}: a template with named fields is needed here, not glued text"
