"""Two models on the same rows, with any statistic: draw rows with replacement, the same ones for both.

Efron 1979; for two systems on one test set Koehn 2004, "Statistical Significance Tests for Machine Translation
Evaluation". Rows that belong together (one document, one customer) are drawn together. A percentile interval of n draws
is too narrow by sqrt((n - 1) / n) and by the difference of the normal distribution from Student's; the quantiles are
moved outwards by both (core/intervals.py).
The p-value is the level at which this interval begins to hold no difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from weitiao.core.intervals import Clusters, bootstrap_draws, percentiles, sums_by_cluster
from weitiao.evaluate.comparison.student_t import t_cdf

DRAWS = 10_000


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
    clusters: Clusters = (),
    draws: int = DRAWS,
) -> Interval:
    """The mean of the rows' differences.

    Args:
        clusters: what each row belongs to; (): each row for itself.
    """
    rows = np.stack([np.asarray(differences, float), np.ones(len(differences))], 1)  # [n, 2]
    units = sums_by_cluster(rows, clusters) if clusters else rows
    totals = np.concatenate([units[picks].sum(1) for picks in bootstrap_draws(len(units), draws)])  # [draws, 2]
    return interval_of(float(rows[:, 0].mean()), totals[:, 0] / totals[:, 1], len(units))


def interval_of(value: float, drawn_values: np.ndarray, units: int) -> Interval:
    """The interval and the p-value that the drawn values say."""
    if units < 2:
        return Interval(value, math.nan, math.nan, 1.0, units)
    widen = math.sqrt(units / (units - 1))
    low, high = percentiles(drawn_values.tolist(), units)
    below, above = int((drawn_values <= 0).sum()), int((drawn_values >= 0).sum())
    one_sided = min(0.5, (min(below, above) + 1) / (len(drawn_values) + 1))
    p = 2 * t_cdf(NormalDist().inv_cdf(one_sided) / widen, units - 1)
    return Interval(value, low, high, min(1.0, p), units)
