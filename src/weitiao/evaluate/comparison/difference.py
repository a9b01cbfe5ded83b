"""Two models on the same rows, by one metric: the difference with its interval, and whether it can be chance.

rows right or wrong        McNemar's test, exact; Tango's interval                 (comparison/mcnemar.py)
any other value per row    paired bootstrap of the mean                            (comparison/paired_bootstrap.py)
a score of all rows        paired bootstrap: the metric's own draws, row by row    (F1, BLEU, perplexity)
rows that belong together  paired bootstrap, whole clusters drawn
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from weitiao.core.intervals import Clusters, keeping_draws
from weitiao.core.messages import Message, joined
from weitiao.core.metric import Metric
from weitiao.core.score import MIN_ROWS, Score, format_change, is_percentage
from weitiao.evaluate.comparison.holm import holm
from weitiao.evaluate.comparison.mcnemar import sign_test, tango_interval
from weitiao.evaluate.comparison.paired_bootstrap import Interval, bootstrap_mean, interval_of

ALPHA = 0.05
LOSSES = ("row_losses", "row_bytes")  # sums and what they are divided by
MIN_REPEATS = 1.1  # rows per cluster; with fewer, rows are taken as independent
Test = Literal["mcnemar", "paired_bootstrap", "paired_bootstrap_clusters", ""]
TESTS: dict[str, Message] = {
    "mcnemar": Message("McNemar's test, exact"),
    "paired_bootstrap": Message("paired bootstrap over rows"),
    "paired_bootstrap_clusters": Message("paired bootstrap over groups of rows"),
    "": Message("no paired test"),
}
VERDICTS: dict[str, Message] = {
    "better": Message("better"),
    "worse": Message("worse"),
    "changed": Message("changed"),
    "open": Message("no difference shown"),
    "few_rows": Message("too few rows (n < {n})", n=MIN_ROWS),
    "not_measured": Message("not measured"),
}


@dataclass(frozen=True)
class Difference:
    """A candidate's score minus the reference's."""

    metric: str
    candidate: str
    reference_score: Score
    candidate_score: Score
    change: float
    low: float
    high: float
    p: float
    test: Test
    p_adjusted: float = 1.0
    """Holm's, over all metrics and candidates."""
    wins: int | None = None
    """Rows on which the candidate is better; None: no row has a value."""
    losses: int | None = None
    verdict: str = "open"
    """A key of VERDICTS."""

    @property
    def n(self) -> int:
        return self.candidate_score.n

    @property
    def ties(self) -> int | None:
        return None if self.wins is None or self.losses is None else self.n - self.wins - self.losses

    @property
    def change_text(self) -> Message:
        """'+3.2 points [+1.0, +5.4]'."""
        if self.verdict == "not_measured":
            return VERDICTS["not_measured"]
        scale, digits = (100, 1) if is_percentage(self.metric) else (1, 3)
        bounds = f" [{scale * self.low:+.{digits}f}, {scale * self.high:+.{digits}f}]" if self.low == self.low else ""
        return joined("", [format_change(self.metric, self.change), bounds])

    @property
    def verdict_text(self) -> str:
        return str(VERDICTS[self.verdict])

    @property
    def test_text(self) -> str:
        return str(TESTS[self.test])

    def as_json(self) -> dict[str, Any]:
        scores = {key: getattr(self, key).as_json() for key in ("reference_score", "candidate_score")}
        return {**asdict(self), **scores, "n": self.n, "ties": self.ties}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Difference":
        """What `as_json` wrote, with whatever was added to it."""
        values = {x.name: record[x.name] for x in fields(cls) if x.name in record}
        scores = {key: Score.from_json(record[key]) for key in ("reference_score", "candidate_score")}
        return cls(**{**values, **scores})


def row_values(metric: Metric, pairs: list[tuple[Any, Any]]) -> list[float] | None:
    """The value of each row, to read rows by; None: only all rows together have one."""
    if metric.reads in LOSSES:
        return [total / max(count, 1e-12) for total, count in pairs]
    return metric.row_values(pairs)


def difference(
    metric: Metric,
    name: str,
    candidate: str,
    pairs: tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]],
    clusters: Clusters = (),
) -> Difference:
    """
    Args:
        name: of the metric, with its task.
        pairs: of the reference and of the candidate, row by row.
        clusters: what each row belongs to; (): nothing.
    """
    clusters = clusters if clusters and len(clusters) >= MIN_REPEATS * len(set(clusters)) else ()
    scores, draws = [], []
    for own in pairs:
        with keeping_draws() as kept:
            scores.append(replace(metric.score(own, clusters), name=name))
        draws.append(kept)
    one, two = scores
    result = Difference(name, candidate, one, two, two.value - one.value, float("nan"), float("nan"), 1.0, "")
    if not min(one.n, two.n):
        return replace(result, verdict="not_measured")
    before, after = (row_values(metric, x) for x in pairs)
    means = [metric.row_values(x) for x in pairs]
    if before is not None and after is not None and two.higher_is_better is not None:
        sign = 1 if two.higher_is_better else -1
        changes = [sign * (b - a) for a, b in zip(before, after)]
        result = replace(result, wins=sum(x > 0 for x in changes), losses=sum(x < 0 for x in changes))
    interval, test = _tested(result, means, draws, clusters)
    if interval is not None:
        result = replace(result, low=interval.low, high=interval.high, p=interval.p, test=test)
    return result


def _tested(
    result: Difference, means: Sequence[list[float] | None], draws: Sequence[Sequence[Any]], clusters: Clusters
) -> tuple[Interval | None, Test]:
    one, two = means
    test: Test = "paired_bootstrap_clusters" if clusters else "paired_bootstrap"
    if one is None or two is None:
        if len(draws[0]) != 1 or len(draws[1]) != 1 or draws[0][0].shape != draws[1][0].shape:
            return None, ""
        changes = draws[1][0] - draws[0][0]  # NaN where a draw has no value, as without a class there is no AUROC
        changes = changes[~np.isnan(changes)]
        if not len(changes):
            return None, ""
        return interval_of(result.change, changes, result.candidate_score.clusters or result.n), test
    if clusters or {*one, *two} - {0.0, 1.0}:
        return bootstrap_mean([b - a for a, b in zip(one, two)], clusters), test
    wins, losses = (sum(b - a == sign for a, b in zip(one, two)) for sign in (1, -1))
    low, high = tango_interval(wins, losses, len(one))
    return Interval(result.change, low, high, sign_test(wins, losses), len(one)), "mcnemar"


def judged_together(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's adjustment over all of them, and a verdict each."""
    tested = [x for x in differences if x.test]
    adjusted = dict(zip(map(id, tested), holm([x.p for x in tested])))
    return [replace(x, p_adjusted=adjusted.get(id(x), 1.0), verdict=_verdict(x, adjusted.get(id(x)))) for x in differences]


def _verdict(x: Difference, p: float | None) -> str:
    if x.verdict == "not_measured" or p is None:
        return x.verdict
    if x.n < MIN_ROWS:
        return "few_rows"
    if p >= ALPHA or x.change == 0:
        return "open"
    if x.candidate_score.higher_is_better is None:
        return "changed"
    return "better" if (x.change > 0) == x.candidate_score.higher_is_better else "worse"
