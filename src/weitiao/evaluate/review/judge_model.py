"""A model as a judge: asked twice about two answers, with their places swapped. Only agreement of the two is a verdict.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", sec. 3.4 (positions) and fig. 5 (prompt). An
answer without a verdict is counted as that, and never replaced by one.

verdicts.jsonl      one line for each pair of answers, written at once
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core import event_log
from weitiao.core.errors import ModelError
from weitiao.core.score import Score, mean_of_rows
from weitiao.evaluate.finite_json import finite
from weitiao.evaluate.review.agreement import cohen_kappa
from weitiao.evaluate.review.review_results import (
    FIRST,
    SECOND,
    TIE,
    Outcome,
    PairResult,
    majority_of,
    pair_results,
)  # fmt: skip
from weitiao.evaluate.review.review_set import Pair, ReviewSet

FILE, UNREADABLE = "verdicts.jsonl", "unreadable"
DRAWS, GIVE_UP = 1000, 10  # GIVE_UP: so many unreadable pairs from the start, and the model is no judge
VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
Ask = Callable[[list[dict[str, Any]]], str]
INSTRUCTION = (
    "You judge two answers to the same prompt. Weigh accuracy, completeness, tone and safety. Neither the order nor the "
    "length of the answers counts. Write one short sentence, then your verdict: [[A]] if answer A is better, [[B]] if "
    "answer B is better, [[C]] if they are equally good."
)


@dataclass(frozen=True)
class JudgeVerdict:
    """What a judge said of two answers."""

    judge: str
    item: int
    first: str
    second: str
    outcome: str
    """FIRST, SECOND, TIE, or UNREADABLE."""
    consistent: bool
    """It said the same of both orders."""
    answers: str
    """A fingerprint of the prompt and both answers: a verdict on other ones is not taken for this."""


@dataclass(frozen=True)
class Agreement:
    """A judge model and people, on the pairs that both judged."""

    n: int
    kappa: float
    low: float
    high: float
    same: Score
    """The share on which they agree."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same.as_json()}


@dataclass(frozen=True)
class JudgeResults:
    """All verdicts of one judge model."""

    judge: str
    pairs: list[PairResult]
    judged: int
    inconsistent: int
    """Of the judged pairs: another verdict when the answers changed places; they count as ties."""
    unreadable: int
    """Pairs without a verdict, which do not count."""
    agreement: Agreement | None = None
    """With people; None: they have judged none of these pairs."""

    def as_json(self) -> dict[str, Any]:
        pairs = [{**asdict(x), "share": x.share.as_json()} for x in self.pairs]
        return finite({**asdict(self), "pairs": pairs, "agreement": self.agreement and self.agreement.as_json()})


def judge_messages(messages: Sequence[dict[str, Any]], a: str, b: str) -> list[dict[str, Any]]:
    """What the judge is asked."""
    prompt = "\n".join(f"{x['role']}: {x['content']}" for x in messages)
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"[Prompt]\n{prompt}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n[Verdict]"},
    ]


def read_verdict(text: str, swapped: bool) -> str:
    """The last verdict in a judge's text.

    >>> read_verdict("Both are fine, B is shorter. [[B]]", swapped=False), read_verdict("hello", swapped=False)
    ('second', 'unreadable')
    """
    found = VERDICT.findall(text)
    if not found:
        return UNREADABLE
    letter = found[-1].upper()
    return TIE if letter == "C" else FIRST if (letter == "A") != swapped else SECOND


def judge_pairs(
    review: ReviewSet, judge: str, ask: Ask, folder: Path, progress: Callable[[Sequence[Pair]], Any] = iter
) -> list[JudgeVerdict]:
    """A verdict on every pair of answers; those that are in the folder already are not asked for again.

    Raises:
        ModelError: the judge does not answer, or the first pairs have no readable verdict.
    """
    known = _on(review, [x for x in read_verdicts(folder) if x.judge == judge])
    waiting = [x for x in review.pairs if x not in known]
    for pair in progress(waiting):
        item = review.items[pair.item]
        one, two = item.answers[pair.first], item.answers[pair.second]
        straight = read_verdict(ask(judge_messages(item.messages, one, two)), swapped=False)
        swapped = read_verdict(ask(judge_messages(item.messages, two, one)), swapped=True)
        readable = UNREADABLE not in (straight, swapped)
        said = UNREADABLE if not readable else straight if straight == swapped else TIE
        verdict = JudgeVerdict(
            judge, pair.item, pair.first, pair.second, said, not readable or straight == swapped, _answers(review, pair)
        )
        event_log.append(folder / FILE, asdict(verdict))
        known[pair] = verdict
        if len(known) >= GIVE_UP and all(x.outcome == UNREADABLE for x in known.values()):
            raise ModelError(
                "{judge} gives no verdict ([[A]], [[B]] or [[C]]) on any of the first {n} pairs: it cannot judge",
                judge=judge,
                n=len(known),
            )
    return [known[x] for x in review.pairs]


def _on(review: ReviewSet, verdicts: Sequence[JudgeVerdict]) -> dict[Pair, JudgeVerdict]:
    """The last verdict on each pair of answers as they are now."""
    prints = {x: _answers(review, x) for x in review.pairs}
    found = ((Pair(x.item, x.first, x.second), x) for x in verdicts)
    return {pair: x for pair, x in found if prints.get(pair) == x.answers}


def _answers(review: ReviewSet, pair: Pair) -> str:
    item = review.items[pair.item]
    text = json.dumps([item.messages, item.answers[pair.first], item.answers[pair.second]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_verdicts(folder: Path) -> list[JudgeVerdict]:
    """What judge models have said so far."""
    fields = JudgeVerdict.__dataclass_fields__.keys()
    return [JudgeVerdict(**x) for x in event_log.read(folder / FILE) if x.keys() == fields]


def judge_results(
    review: ReviewSet, verdicts: Sequence[JudgeVerdict], people: Sequence[Outcome] = ()
) -> list[JudgeResults]:
    """What each judge model says, and how far people agree with it."""
    results = []
    for judge in dict.fromkeys(x.judge for x in verdicts):
        own = _on(review, [x for x in verdicts if x.judge == judge])
        readable = {pair: [x.outcome] for pair, x in own.items() if x.outcome != UNREADABLE}
        inconsistent = sum(not x.consistent for x in own.values())
        agreement = agreement_of({pair: said[0] for pair, said in readable.items()}, people)
        pairs = pair_results(review, readable)
        results.append(JudgeResults(judge, pairs, len(own), inconsistent, len(own) - len(readable), agreement))
    return results


def agreement_of(own: dict[Pair, str], people: Sequence[Outcome]) -> Agreement | None:
    """With what most people say of a pair; both bad is a tie."""
    said: dict[Pair, list[str]] = {}
    for x in people:
        said.setdefault(x.pair, []).append(x.outcome)
    both = [(own[pair], majority_of(listed)) for pair, listed in said.items() if pair in own]
    if not both:
        return None
    picks = np.random.default_rng(0).integers(0, len(both), (DRAWS, len(both)))
    drawn = np.array([cohen_kappa([both[i] for i in x]) for x in picks.tolist()])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (float("nan"), float("nan"))
    same = mean_of_rows("agreement", [float(a == b) for a, b in both])
    return Agreement(len(both), cohen_kappa(both), float(low), float(high), same)
