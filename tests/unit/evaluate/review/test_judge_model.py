"""A model as a judge: places swapped, nothing invented, its agreement with people."""

from pathlib import Path
from typing import Any

import pytest

from support.reviews import make_review, votes_of
from weitiao.core.errors import ModelError
from weitiao.evaluate.review.judge_model import judge_pairs, judge_results, read_verdict, read_verdicts
from weitiao.evaluate.review.review_results import FIRST, SECOND, TIE, outcomes_of


def by_content(messages: list[dict[str, Any]]) -> str:
    """Prefers the answers of the second model (answer l), wherever they are."""
    before, after = messages[1]["content"].split("[Answer B]")
    return "[[A]]" if "answer l" in before else "[[B]]" if "answer l" in after else "[[C]]"


def test_a_judge_that_reads_is_consistent(tmp_path: Path) -> None:
    review = make_review(12)
    verdicts = judge_pairs(review, "j", by_content, tmp_path)
    assert {x.outcome for x in verdicts} == {SECOND} and all(x.consistent for x in verdicts)
    people = outcomes_of(review, votes_of(review, "ann", lambda p, d: "new-model" if p.item % 2 else "tie"))
    found = judge_results(review, verdicts, people)[0]
    assert found.pairs[0].second_wins == 12 and found.inconsistent == 0
    assert found.agreement is not None and found.agreement.n == 12 and found.agreement.same.value == 0.5
    assert found.agreement.kappa == 0  # it always says the same: no better than chance


def test_a_judge_that_prefers_a_place_says_nothing(tmp_path: Path) -> None:
    """Always the first answer: every verdict changes with the places, and counts as a tie."""
    review = make_review(12)
    found = judge_results(review, judge_pairs(review, "j", lambda _: "I like it. [[A]]", tmp_path))[0]
    assert found.inconsistent == 12 and found.pairs[0].ties == 12 and found.agreement is None


def test_nonsense_is_counted_and_not_replaced(tmp_path: Path) -> None:
    review = make_review(20)
    said = iter(range(1000))
    verdicts = judge_pairs(review, "j", lambda m: by_content(m) if next(said) % 3 else "Hello!", tmp_path)
    found = judge_results(review, verdicts)[0]
    assert found.judged == 20 and 0 < found.unreadable < 20 and found.pairs[0].prompts == 20 - found.unreadable


def test_a_model_that_cannot_judge_is_named(tmp_path: Path) -> None:
    asked = []
    with pytest.raises(ModelError, match="gives no verdict"):
        judge_pairs(make_review(50), "tiny", lambda m: asked.append(1) or "", tmp_path)
    assert len(asked) == 20  # ten pairs, both orders


def test_verdicts_are_kept_when_the_judge_dies(tmp_path: Path) -> None:
    review, calls = make_review(12), []

    def dies(messages: list[dict[str, Any]]) -> str:
        calls.append(1)
        if len(calls) > 11:
            raise ModelError("gone")
        return by_content(messages)

    with pytest.raises(ModelError, match="gone"):
        judge_pairs(review, "j", dies, tmp_path)
    assert len(read_verdicts(tmp_path)) == 5
    calls.clear()
    verdicts = judge_pairs(review, "j", lambda m: calls.append(1) or by_content(m), tmp_path)
    assert len(verdicts) == 12 and len(calls) == 14  # the other seven


def test_verdicts_on_other_answers_are_not_taken(tmp_path: Path) -> None:
    review = make_review(12)
    judge_pairs(review, "j", by_content, tmp_path)
    review.items[3].answers["new-model"] = "another answer"
    assert judge_results(review, read_verdicts(tmp_path))[0].judged == 11
    calls: list[int] = []
    judge_pairs(review, "j", lambda m: calls.append(1) or by_content(m), tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[A]]", FIRST),
        ("first [[A]], no: [[B]]", SECOND),
        ("[[ c ]]", TIE),
        ("", "unreadable"),
        ("A", "unreadable"),
        ("[[D]]", "unreadable"),
    ],
)
def test_verdicts_are_read(text: str, said: str) -> None:
    assert read_verdict(text, swapped=False) == said
    turned = {FIRST: SECOND, SECOND: FIRST}.get(said, said)
    assert read_verdict(text, swapped=True) == turned
