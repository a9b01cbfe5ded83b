"""What the votes say: who won how often, whether that can be chance, how far judges agree, whether sides mattered."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from weitiao.core.score import Score, mean_of_rows, proportion
from weitiao.evaluate.comparison.holm import holm
from weitiao.evaluate.comparison.mcnemar import sign_test
from weitiao.evaluate.finite_json import finite
from weitiao.evaluate.review.agreement import alpha_interval, krippendorff_alpha
from weitiao.evaluate.review.bradley_terry import Strength, strengths
from weitiao.evaluate.review.review_set import Pair, ReviewSet
from weitiao.evaluate.review.votes import RUBRICS, Vote

FIRST, SECOND, TIE, BOTH_BAD = "first", "second", "tie", "both_bad"
POINTS = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5, BOTH_BAD: 0.5}
SAME = "same"  # the judge of equal answers, which nobody is asked about


@dataclass(frozen=True)
class Outcome:
    """A vote, with its models."""

    pair: Pair
    judge: str
    outcome: str
    """FIRST, SECOND, TIE or BOTH_BAD."""
    side: str
    """left, right, or "" where neither won."""
    rubrics: dict[str, str] = field(default_factory=dict)
    comment: str = ""


@dataclass(frozen=True)
class PairResult:
    """Two models, over all prompts."""

    first: str
    second: str
    prompts: int
    """Prompts that were judged; a prompt counts once, by what most of its judges say."""
    first_wins: int
    second_wins: int
    ties: int
    same: int
    """Of the ties: both models gave one answer."""
    both_bad: int
    """Votes."""
    share: Score
    """Of the first model: 1 a prompt that it wins, 0.5 a tie."""
    p: float
    """Sign test, exact, over prompts."""
    p_adjusted: float = 1.0
    """Holm's, over all pairs of models."""


@dataclass
class ReviewResults:
    """All of it."""

    pairs: list[PairResult]
    strengths: list[Strength]
    judges: dict[str, int]
    """Votes of each."""
    alpha: float
    alpha_low: float
    alpha_high: float
    judged_twice: int
    """Items with at least two judges, which alpha is of."""
    left: Score
    """Share of decided votes that the left side won."""
    left_p: float
    rubrics: dict[str, list[PairResult]] = field(default_factory=dict)
    comments: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        def shown(x: PairResult) -> dict[str, Any]:
            return {**asdict(x), "share": x.share.as_json()}

        record = {**asdict(self), "left": self.left.as_json(), "pairs": [shown(x) for x in self.pairs]}
        return finite({**record, "rubrics": {name: [shown(x) for x in listed] for name, listed in self.rubrics.items()}})


def outcomes_of(review: ReviewSet, votes: Sequence[Vote]) -> list[Outcome]:
    """The votes with their models; a vote on nothing that is in the review is left out."""
    found: list[Outcome] = []
    by_judge: dict[str, dict[str, Pair]] = {}
    for vote in votes:
        pair = by_judge.setdefault(vote.judge, review.by_id(vote.judge)).get(vote.id)
        if pair is None:
            continue
        swapped = review.is_swapped(vote.judge, pair)
        rubrics = {name: _said(x, swapped) for name, x in vote.rubrics.items()}
        side = vote.verdict if vote.verdict in ("left", "right") else ""
        found.append(Outcome(pair, vote.judge, _said(vote.verdict, swapped), side, rubrics, vote.comment))
    return found


def _said(verdict: str, swapped: bool) -> str:
    if verdict not in ("left", "right"):
        return verdict
    return FIRST if (verdict == "left") != swapped else SECOND


def review_results(review: ReviewSet, votes: Sequence[Vote]) -> ReviewResults:
    """Everything that the votes of people say."""
    outcomes = outcomes_of(review, votes)
    judges = {name: sum(x.judge == name for x in outcomes) for name in dict.fromkeys(x.judge for x in outcomes)}
    said: dict[Pair, list[str]] = defaultdict(list)
    for x in outcomes:
        said[x.pair].append(x.outcome)
    low, high = alpha_interval(list(said.values()))
    decided = [x for x in outcomes if x.side]
    left = sum(x.side == "left" for x in decided)
    games = [(x.pair.item, x.pair.first, x.pair.second, POINTS[x.outcome]) for x in outcomes]
    games += [(x.item, x.first, x.second, POINTS[TIE]) for x in review.same] if outcomes else []
    return ReviewResults(
        pairs=_adjusted(pair_results(review, said)),
        strengths=strengths(games, list(review.models)) if len(review.models) > 2 and games else [],
        judges=judges,
        alpha=krippendorff_alpha(list(said.values())),
        alpha_low=low,
        alpha_high=high,
        judged_twice=sum(len(x) > 1 for x in said.values()),
        left=proportion("left", left, len(decided)),
        left_p=sign_test(left, len(decided) - left),
        rubrics=_by_rubric(review, outcomes),
        comments=[
            {
                "judge": x.judge,
                "item": str(x.pair.item),
                "first": x.pair.first,
                "second": x.pair.second,
                "comment": x.comment,
            }
            for x in outcomes
            if x.comment
        ],
    )


def pair_results(review: ReviewSet, said: dict[Pair, list[str]], with_same: bool = True) -> list[PairResult]:
    """Of every two models: prompts won, tied and lost.

    Args:
        said: of each pair of answers, what its judges said.
        with_same: equal answers count as ties.
    """
    results = []
    for first, second in dict.fromkeys((x.first, x.second) for x in (*review.pairs, *review.same)):
        listed = {x: y for x, y in said.items() if (x.first, x.second) == (first, second)}
        majority = [majority_of(x) for x in listed.values()]
        same = sum((x.first, x.second) == (first, second) for x in review.same) if listed and with_same else 0
        wins, losses = majority.count(FIRST), majority.count(SECOND)
        points = [POINTS[x] for x in majority] + [POINTS[TIE]] * same
        results.append(
            PairResult(
                first, second, len(points), wins, losses, len(points) - wins - losses, same,
                sum(x == BOTH_BAD for y in listed.values() for x in y),
                mean_of_rows("win_share", points), sign_test(wins, losses),
            )
        )  # fmt: skip
    return results


def majority_of(said: Sequence[str]) -> str:
    """What most judges of a pair say: FIRST, SECOND or TIE; as many for one as for the other is a tie."""
    net = said.count(FIRST) - said.count(SECOND)
    return FIRST if net > 0 else SECOND if net < 0 else TIE


def _adjusted(results: Sequence[PairResult]) -> list[PairResult]:
    return [replace(x, p_adjusted=p) for x, p in zip(results, holm([x.p for x in results]))]


def _by_rubric(review: ReviewSet, outcomes: Sequence[Outcome]) -> dict[str, list[PairResult]]:
    """The same counts for each rubric that was judged."""
    found = {}
    for name in RUBRICS:
        said: dict[Pair, list[str]] = defaultdict(list)
        for x in outcomes:
            if name in x.rubrics:
                said[x.pair].append(x.rubrics[name])
        if said:
            found[name] = _adjusted(pair_results(review, said, with_same=False))
    return found


def preference_rows(review: ReviewSet, votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Preference data as TRL reads it: {"prompt": [...], "chosen": [...], "rejected": [...]}.

    A row for each pair of answers of which one won; ties are left out, and so are pairs that are both bad.
    """
    said: dict[Pair, list[str]] = defaultdict(list)
    for x in outcomes_of(review, votes):
        said[x.pair].append(x.outcome)
    rows = []
    for pair in review.pairs:
        winner = majority_of(said.get(pair, []))
        if winner == TIE:
            continue
        item = review.items[pair.item]
        better, worse = (pair.first, pair.second) if winner == FIRST else (pair.second, pair.first)
        answers = ([{"role": "assistant", "content": item.answers[x]}] for x in (better, worse))
        rows.append({"prompt": list(item.messages), **dict(zip(("chosen", "rejected"), answers))})
    return rows
