"""Two models on the same rows, with any statistic: draw rows with replacement, the same ones for both.

Efron 1979; for two systems on one test set Koehn 2004, "Statistical Significance Tests for Machine Translation
Evaluation". Rows that belong together (one document, one customer) are drawn together. A percentile interval of n draws
is too narrow by sqrt((n - 1) / n) and by the difference of the normal distribution from Student's; the quantiles are
moved outwards by both (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", sec. 4.3, "expanded percentile").
The p-value is the level at which this interval begins to hold no difference.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from weitiao.evaluate.comparison.student_t import t_cdf, t_quantile

DRAWS = 10_000
DRAWN_AT_ONCE = 2**20  # row numbers
NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A difference, its 95 % interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float
    units: int
    """What was drawn: rows, or clusters of rows."""


def bootstrap_mean(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The mean of the rows' differences.

    Args:
        clusters: what each row belongs to; None: each row for itself.
    """
    groups = row_groups(len(differences), clusters)
    values, sizes = np.asarray(differences, float), np.array([len(rows) for rows in groups])
    sums = np.array([values[rows].sum() for rows in groups])
    means = np.concatenate([sums[x].sum(1) / sizes[x].sum(1) for x in drawn(len(groups), draws, seed)])
    return interval_of(float(values.mean()), means, len(groups))


def row_groups(n: int, clusters: Sequence[Hashable] | None) -> list[np.ndarray]:
    """The row numbers of each cluster."""
    groups: dict[Hashable, list[int]] = {}
    for i, name in enumerate(range(n) if clusters is None else clusters):
        groups.setdefault(name, []).append(i)
    return [np.array(x) for x in groups.values()]


def drawn(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of all units with replacement, [draws, units] in all, some at a time."""
    random, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // units)
    for start in range(0, draws, at_once):
        yield random.integers(0, units, (min(at_once, draws - start), units))


def interval_of(value: float, drawn_values: np.ndarray, units: int) -> Interval:
    """The interval and the p-value that the drawn values say."""
    if units < 2:
        return Interval(value, math.nan, math.nan, 1.0, units)
    widen = math.sqrt(units / (units - 1))
    tail = NORMAL.cdf(t_quantile(0.025, units - 1) * widen)
    low, high = (float(x) for x in np.quantile(drawn_values, [tail, 1 - tail]))
    below, above = int((drawn_values <= 0).sum()), int((drawn_values >= 0).sum())
    one_sided = min(0.5, (min(below, above) + 1) / (len(drawn_values) + 1))
    p = 2 * t_cdf(NORMAL.inv_cdf(one_sided) / widen, units - 1)
    return Interval(value, low, high, min(1.0, p), units)
