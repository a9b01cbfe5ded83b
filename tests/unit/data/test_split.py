"""Train and validation, by content: what asks the same stays on one side, and keeps it."""

import random
from collections.abc import Callable

import pytest

from weitiao.core.errors import DataError
from weitiao.core.example import Chat, SourcedExample, SourceLocation, Text, Turn, content_hash
from weitiao.data.split import split


def ask(question: str, answer: str = "paris", line: int = 0) -> SourcedExample:
    return SourcedExample(Chat((Turn("user", question), Turn("assistant", answer))), SourceLocation("f", line))


def many(count: int, begin: int = 0) -> list[SourcedExample]:
    return [ask(f"what is {i}", f"answer {i % 7}", i) for i in range(begin, begin + count)]


def lines(rows: list[SourcedExample]) -> set[int]:
    return {x.where.line for x in rows}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_split_fraction_and_completeness(share: float) -> None:
    train, held, how = split(many(2000), share)
    assert lines(train) | lines(held) == set(range(2000)) and not lines(train) & lines(held)
    assert len(held) == pytest.approx(2000 * share, rel=0.25)
    assert "input" in str(how)


def test_split_keeps_order() -> None:
    train, held, _ = split(many(300), 0.3)
    for side in (train, held):
        assert [x.where.line for x in side] == sorted(lines(side))


VARIANTS = (str.upper, str.title, lambda s: f"  {s.replace(' ', '   ')}\n", lambda s: s.replace("i", "ｉ"), lambda s: s)


def test_split_duplicates_on_one_side() -> None:
    rows = []
    for i in range(300):
        rows += [ask(change(f"what is {i}"), f"answer {k}", i) for k, change in enumerate(VARIANTS)]
    train, held, _ = split(rows, 0.3)
    assert held and not lines(train) & lines(held)


def test_split_hash_by_question() -> None:
    assert content_hash("what is 1") != content_hash("what is 11")
    assert len({content_hash(change("what is it")) for change in VARIANTS}) == 1


def test_split_stable_when_rows_added() -> None:
    few, lots = split(many(400), 0.2), split([*reversed(many(400)), *many(1600, 400)], 0.2)
    assert lines(few[1]) == {x for x in lines(lots[1]) if x < 400}
    assert lines(few[0]) == {x for x in lines(lots[0]) if x < 400}


def test_split_same_question_by_whole_row() -> None:
    rows = [ask("write a poem", f"poem {i % 50}", i) for i in range(400)]
    train, held, how = split(rows, 0.3)
    assert held and "whole row" in str(how)
    answers = [{x.example.answer for x in side} for side in (train, held)]
    assert not answers[0] & answers[1]


def test_split_plain_text() -> None:
    rows = [SourcedExample(Text(f"document {i // 2}"), SourceLocation("f", i // 2)) for i in range(200)]
    train, held, _ = split(rows, 0.2)
    assert held and not lines(train) & lines(held)


def test_split_few_rows() -> None:
    train, held, _ = split(many(3), 0.01)
    assert len(held) == 1 and len(train) == 2


WORDS = """heron otter badger lynx river frozen muddy fish eats sleeps under tree every seven days many asks why
moon letter garden stone window silver carpet engine ticket bridge market doctor lemon paper violin winter""".split()  # noqa: SIM905
HAN = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对"
    "小多然于心学么之都好看起发当没成只如事把还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动"
)


def drawn(letters: str | list[str], between: str, count: int) -> list[str]:
    """Texts of 30 letters or words each, no two alike."""
    rng = random.Random(0)
    return [between.join(rng.choices(letters, k=30)) for _ in range(count)]


@pytest.mark.parametrize(
    ("texts", "edited"),
    [
        (drawn(WORDS, " ", 300), lambda x: f"{x.capitalize()}, please?"),
        (drawn(list(HAN), "", 300), lambda x: f"{x}，谢谢！".replace("国", "國").replace("么", "麼")),
    ],
)
def test_near_duplicates_are_on_one_side(texts: list[str], edited: Callable[[str], str]) -> None:
    rows = [ask(text, line=i) for i, text in enumerate(texts)]
    copies = [ask(edited(text), line=i) for i, text in enumerate(texts)]
    train, held, how = split([*rows, *copies], 0.3)
    assert str(how) == "by the hash of the input, near-duplicates together"
    assert len(held) == pytest.approx(180, rel=0.3) and not lines(train) & lines(held)
    assert lines(split(rows, 0.3)[1]) == lines(held), "a row keeps its side when copies are added"


def test_one_large_cluster_does_not_decide_the_size_of_the_split() -> None:
    """Rows from one template are all near-duplicates: only equal ones stay together, and the reason says so."""
    rows = [
        ask(f"where is my order number {i:04}, which I have been waiting for since Monday?", line=i) for i in range(500)
    ]
    train, held, how = split([*rows, *rows], 0.2)
    assert len(held) == pytest.approx(200, rel=0.3) and not lines(train) & lines(held)
    assert str(how) == "by the hash of the input"


def test_split_zero() -> None:
    train, held, _ = split(many(5), 0.0)
    assert len(train) == 5 and held == []


def test_split_too_few_distinct_rows_refused() -> None:
    with pytest.raises(DataError, match="too few different rows to hold any out. Use more rows, or validation: 0"):
        split([ask("the same"), ask("The  Same")], 0.999)
