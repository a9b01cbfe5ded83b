"""Laws over all rules of data/cleaners: pure, quick, harmless to Chinese punctuation, and true to what they say."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weitiao.core.cleaner import Cleaner, RowCleaner, TextCleaner, TextPart
from weitiao.core.registry import find, names

PUNCTUATION = "，。！？；：（）《》「」“”、…—～％"
PIECES = (  # what rules look for, to be put together at random
    "<p>", "</p>", "<br>", "<b", "&amp;", "&lt;b&gt;", "`x`", "```", "嗯", "呃，", "um ", "uh, ",
    "you know, ", "那个", "，", "。",
    "\r\n", "\u200b", "👨\u200d👩", "Ã©", "â€™", "ä¸\xad", "ÖÐÎÄ", "鎴戜滑", "\ud800",
    "\ue000", "A", "中文", "的", "９", "⻚", "ﬁ", " ",
    "\n", "\t", "...", "！！！", "哈", "ab ", "All rights reserved.", "\ufffd", "\x1b[31m", "<think>", "\u3000",
    "e\u0301", "'",
)  # fmt: skip
TIDY = (
    "今天天气很好，我们去公园吧！（记得带伞）",
    "The quick brown fox jumps over the lazy dog; it's 3.5 m high — really.",
    "価格は１つ100円です。".replace("１", "1"),
    "def f(x):\n    return x < 3 and x > 1  # a<b",
    "第一行\n\n- 第二行\n- 第三行",
    "He said: “I’d like that,” and left…",
)
texts = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from((1, 1, 1, 2, 30))), max_size=12).map(
    lambda x: "".join(piece * n for piece, n in x)
)


def rules(kind: type[Cleaner]) -> list[str]:
    return [name for name in names("cleaner") if issubclass(find("cleaner", name), kind)]


@pytest.mark.parametrize("name", rules(TextCleaner))
@given(text=texts)
@settings(max_examples=60, deadline=2000)
def test_cleaning_twice_is_cleaning_once(name: str, text: str) -> None:
    clean = find("cleaner", name)().clean  # pyright: ignore[reportAttributeAccessIssue]
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("name", rules(TextCleaner))
@pytest.mark.parametrize("text", TIDY)
def test_tidy_text_stays(name: str, text: str) -> None:
    assert find("cleaner", name)().clean(text) == text  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["unicode", "invisible", "mojibake"])
@given(text=texts)
@settings(max_examples=60, deadline=2000)
def test_chinese_punctuation_is_never_changed(name: str, text: str) -> None:
    clean = find("cleaner", name)().clean  # pyright: ignore[reportAttributeAccessIssue]
    for around in (PUNCTUATION, f"{text} {PUNCTUATION} {text}"):
        assert PUNCTUATION in clean(around)


@pytest.mark.parametrize("name", rules(RowCleaner))
@given(text=texts)
@settings(max_examples=60, deadline=4000)
def test_row_rules_take_any_text(name: str, text: str) -> None:
    refusal = find("cleaner", name)().refusal([TextPart(("text",), "answer", text)])  # pyright: ignore[reportAttributeAccessIssue]
    assert refusal is None or str(refusal)


@pytest.mark.parametrize("name", names("cleaner"))
@pytest.mark.parametrize("piece", [*PIECES, "<div>" * 10, "you know, um, ", "嗯，那个，", "a b c d e f g h "])
def test_time_is_nearly_linear(name: str, piece: str) -> None:
    """40,000 characters of one kind in a second: no pattern that takes exponential time."""
    rule = find("cleaner", name)()
    text = piece * (40_000 // len(piece))
    started = time.process_time()
    if isinstance(rule, TextCleaner):
        rule.clean(text)
    else:
        rule.refusal([TextPart(("text",), "answer", text)])  # pyright: ignore[reportAttributeAccessIssue]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", names("cleaner"))
def test_every_rule_says_what_it_cannot_see(name: str) -> None:
    assert re.search(r"cannot\s+see", find("cleaner", name).__doc__ or "")
