"""Metrics over numbers: pairs of predicted and reference numbers, with a bootstrap over rows."""

from collections.abc import Callable, Sequence

import numpy as np

from weitiao.core.errors import RecipeError
from weitiao.core.score import Clusters, Score, bootstrapped

Numbers = Sequence[float]
Statistic = Callable[[np.ndarray, np.ndarray], float]


def score_numbers(
    name: str,
    pairs: Sequence[tuple[Numbers, Numbers]],
    clusters: Clusters,
    statistic: Statistic,
    higher_is_better: bool,
) -> Score:
    """A statistic of one number per row; with several numbers per row, the mean of their statistics.

    Args:
        pairs: (predicted, reference) of each row, each with K numbers.
        statistic: (predicted [n], reference [n]) -> a number.

    Raises:
        RecipeError: the pairs are not numbers.
    """
    if any(isinstance(x, str) or not all(isinstance(y, (int, float)) for y in x) for pair in pairs[:1] for x in pair):
        raise RecipeError(
            "metric {metric} compares numbers, but this objective predicts none; use it with objective: regression",
            metric=name,
        )
    predicted, reference = (np.array([pair[i] for pair in pairs], np.float64) for i in (0, 1))  # [n, K]

    def mean_statistic(rows: Sequence[int]) -> float:
        sample = np.asarray(rows)
        return float(np.mean([statistic(predicted[sample, k], reference[sample, k]) for k in range(predicted.shape[1])]))

    return bootstrapped(name, range(len(pairs)), mean_statistic, higher_is_better, clusters=clusters)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of [n] and [n]; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    lengths = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
    """[n]: ranks from 1 for the smallest; ties share the mean of their ranks.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
