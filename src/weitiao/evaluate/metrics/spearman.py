"""Spearman's rank correlation of what is predicted with what is right: 1 where both put the rows into the same order.

Spearman 1904: Pearson's correlation of the ranks; equal values share the mean of their ranks.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weitiao.core.registry import Part
from weitiao.core.score import Score, bootstrapped


class Spearman(Part):
    """Rank correlation of what is predicted with what is right."""

    reads: ClassVar[str] = "choices"

    def score(self, pairs: list[tuple[float, float]]) -> Score:
        """(predicted, right) of each row."""
        return bootstrapped(self.name, pairs, rank_correlation, draws=500)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """From -1 to 1; 0 where one side is constant."""
    ranks = [_ranks(np.asarray(side, float)) for side in zip(*pairs)]
    a, b = (x - x.mean() for x in ranks)
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, the mean of them where values are equal."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2
