"""A model is asked as it was trained: with the training rows' system message, the template's date, or as plain text."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.models import CHATML, save_model
from support.rows import chat_rows, write_jsonl
from weitiao import load
from weitiao.cli.app import app
from weitiao.core.engine import Generation, Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.example import Turn
from weitiao.core.reporter import Console, Reporter
from weitiao.core.run import Run
from weitiao.data.chat.template import Template, tokenizer_identity
from weitiao.pipeline import assemble
from weitiao.pipeline.answers import answer_file
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.train.distributed import Distributed

SHORT = {"steps": 1, "batch_size": 4, "evaluate_every": 0}
SYSTEM = "be kind"
DATED = "{{ strftime_now('%d %b %Y %H:%M') }}\n" + CHATML


def with_system(rows: list[dict], system: str = SYSTEM) -> list[dict]:
    return [{"messages": [{"role": "system", "content": system}, *row["messages"]]} for row in rows]


# -- the system message -----------------------------------------------------------------------------------------------


def test_asked_prompt_equals_learned_prompt_with_the_system_message(train_tiny: Any) -> None:
    rows = with_system(chat_rows(12))
    model = load(train_tiny(data=rows, validation=0, train=SHORT))
    assert model.assets.system == SYSTEM
    processor, turns = model.assets.processor, [Turn(**x) for x in rows[0]["messages"]]
    (learned,) = processor.chat(turns)
    asked = model.prompt(turns[1:2])
    assert asked == learned.ids[: learned.assistant_mask.index(True)] == model.prompt(turns[:2])
    without = processor.prompt(turns[1:2])
    assert model.prompt(turns[1:2], system="") == without != asked
    assert model.prompt(turns[1:2], system="other") not in (asked, without)


def test_system_message_in_every_way_to_ask(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(train_tiny(data=with_system(chat_rows(12)), validation=0, train=SHORT))
    prompts: list[list[int]] = []

    def answer(handle: Any, requests: list[Request], engine: Any) -> list[Generation]:
        prompts.extend(list(x.prompt_ids) for x in requests)
        return [Generation(x) for x in requests]

    monkeypatch.setattr("weitiao.pipeline.inference.answer_requests", answer)
    model.generate("the fox")
    model.generate([{"role": "user", "content": "the fox"}])
    file = write_jsonl(
        tmp_path / "p.jsonl", [{"prompt": "the fox"}, {"messages": [{"role": "user", "content": "the fox"}]}]
    )
    list(answer_file(model, str(file), None, SamplingParams(4), 1, Reporter(Console(quiet=True))))
    assert len(prompts) == 4 and len({tuple(x) for x in prompts}) == 1
    assert SYSTEM in model.assets.processor.decode(prompts[0])
    list(answer_file(model, str(file), "", SamplingParams(4), 1, Reporter(Console(quiet=True))))
    assert SYSTEM not in model.assets.processor.decode(prompts[-1])


def test_commands_say_that_they_use_the_system_message(train_tiny: Any) -> None:
    run = str(train_tiny(data=with_system(chat_rows(12)), validation=0, train=SHORT).folder)
    line = "system message of the training rows: 'be kind' (off: --system \"\")"
    for arguments, is_used in (((), True), (("--system", ""), False), (("--system", "other"), False)):
        result = CliRunner().invoke(app, ["generate", run, "the fox", "--max-new-tokens", "2", *arguments])
        assert result.exit_code == 0 and (line in result.stderr) == is_used
        assert line not in result.stdout
    assert line in CliRunner().invoke(app, ["chat", run, "--max-new-tokens", "2"], input="hi\n\n").stderr


@pytest.mark.parametrize("others", [with_system(chat_rows(6), "short"), chat_rows(6)], ids=["another", "none"])
def test_several_system_messages_are_no_default(train_tiny: Any, others: list[dict]) -> None:
    rows = [*with_system(chat_rows(6)), *others]
    assert load(train_tiny(data=rows, validation=0, train=SHORT)).assets.system == ""


def test_evaluated_with_the_system_message(train_tiny: Any, tmp_path: Path) -> None:
    """Rows of another file without one get it, and that is said."""
    rows = chat_rows(12)
    run = str(train_tiny(data=with_system(rows), validation=0, train=SHORT).folder)
    scores, lines = [], []
    for name, data in {"with": with_system(rows), "without": rows}.items():
        console = Console(record=True, width=300, quiet=False, file=(tmp_path / "out").open("w"))
        file = write_jsonl(tmp_path / f"{name}.jsonl", data)
        scores.append(evaluate(run, Reporter(console), str(file), ("loss",))["loss"].value)
        lines.append(console.export_text())
    assert scores[0] == scores[1]
    line = "12 of 12 rows have no system message; that of the training rows is used: 'be kind'"
    assert line not in lines[0] and line in lines[1]


def test_replayed_rows_do_not_count(train_tiny: Any, tmp_path: Path) -> None:
    replay = {"path": str(write_jsonl(tmp_path / "general.jsonl", chat_rows(12))), "fraction": 0.3}
    model = load(train_tiny(data=with_system(chat_rows(12)), replay=replay, validation=0, train=SHORT))
    assert model.assets.system == SYSTEM


# -- the date ---------------------------------------------------------------------------------------------------------


class Clock(datetime.datetime):
    """A clock that the test sets."""

    moment = datetime.datetime(2020, 1, 2, 3, 4)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


def test_date_of_the_template_is_fixed_with_the_run(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its rows, and later when it is asked."""
    monkeypatch.setattr(assemble, "datetime", Clock)
    (tmp_path / "date.jinja").write_text(DATED)
    run = train_tiny(data=chat_rows(12), chat_template=str(tmp_path / "date.jinja"), validation=0, train=SHORT)
    assert "02 Jan 2020 03:04" in json.dumps(run.read("resolved.json")["previews"])
    findings = {x["name"]: x["message"] for x in run.read("preflight.json")}
    assert findings["template_date"]["fields"]["date"] == "02 Jan 2020 03:04"
    model = load(run)
    assert "02 Jan 2020 03:04" in model.assets.processor.decode(model.prompt([Turn("user", "hi")]))


def test_resumed_run_keeps_its_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "datetime", Clock)
    run, alone = Run(tmp_path), Distributed(__import__("torch").device("cpu"))
    date = assemble.fix_date(run, alone)
    monkeypatch.setattr(Clock, "moment", datetime.datetime(2021, 1, 1))
    assert assemble.fix_date(run, alone) == date == "2020-01-02T03:04:00"


def test_cache_key_changes_with_the_date_that_is_written(tmp_path: Path) -> None:
    """Not with a second that the template does not write."""

    def identity(text: str, *moment: int) -> str:
        return tokenizer_identity(tmp_path, text, Template(text, {}, datetime.datetime(2020, 1, *moment)))

    day = "{{ strftime_now('%d %b %Y') }}"
    assert identity(day, 2, 3) == identity(day, 2, 4) != identity(day, 3, 3)
    assert identity(DATED, 2, 3) != identity(DATED, 2, 4)
    assert identity(CHATML, 2) == identity(CHATML, 3) == tokenizer_identity(tmp_path, CHATML)
    computed = "{% set f = '%H' %}{{ strftime_now(f) }}"
    assert identity(computed, 2, 3) != identity(computed, 2, 4)


# -- plain text -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[CHATML, None], ids=["template", "no_template"])
def plain_text_run(request: pytest.FixtureRequest, train_tiny: Any, tmp_path: Path) -> Run:
    base = save_model(tmp_path / "base", template=request.param)
    data = [{"text": f"the quick brown fox {i} jumps over the lazy dog"} for i in range(12)]
    return train_tiny(base=str(base), data=data, objective="causal_lm", validation=0, train=SHORT)


def test_plain_text_is_continued(plain_text_run: Run, tmp_path: Path) -> None:
    model = load(plain_text_run)
    text = "the quick <|im_end|>"
    assert model.prompt([Turn("user", text)]) == model.assets.processor.text(text)
    assert isinstance(model.generate("the quick", max_new_tokens=3), str)
    assert "".join(model.generate("the quick", max_new_tokens=3, stream=True)).strip()
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the quick"}])
    (line,) = answer_file(model, str(file), None, SamplingParams(3), 1, Reporter(Console(quiet=True)))
    assert line["answer"] == model.generate("the quick", max_new_tokens=3)


def test_plain_text_has_no_turns(plain_text_run: Run, tmp_path: Path) -> None:
    model = load(plain_text_run)
    problem = "this model was trained on plain text .objective: causal_lm., which it continues"
    for prompt in (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "system", "content": "a"}],
    ):
        with pytest.raises(DataError, match=problem):
            model.generate(prompt)
    with pytest.raises(DataError, match=problem):
        model.generate("the fox", system="be kind")
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"messages": [{"role": "system", "content": "a"}]}])
    with pytest.raises(DataError, match=f"p.jsonl, line 2.*{problem}"):
        list(answer_file(model, str(file), None, SamplingParams(3), 1, Reporter(Console(quiet=True))))
    result = CliRunner().invoke(app, ["chat", str(plain_text_run.folder)], input="hi\n\n")
    assert result.exit_code == 2 and "continues plain text and has no turns to chat in" in result.output


def test_base_without_a_template_continues_text(tmp_path: Path) -> None:
    model = open_model(str(save_model(tmp_path / "base", template=None)))
    assert model.assets.continues_text and model.prompt([Turn("user", "the fox")]) == model.assets.processor.text("the fox")
