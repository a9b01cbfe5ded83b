"""Spearman's rho: do predicted and right numbers come in the same order?

Spearman 1904: Pearson's r of the ranks, equal numbers sharing the mean of theirs. Of several numbers,
the mean of their rho.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.regression_stats import correlation, ranks, score_numbers


class Spearman(Metric):
    """How far predicted and right numbers are in the same order, -1 to 1."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(predicted, right) of each row, each with its numbers; a bootstrap over rows."""
        return score_numbers(self.name, pairs, lambda a, b: correlation(ranks(a), ranks(b)), higher_is_better=True)
