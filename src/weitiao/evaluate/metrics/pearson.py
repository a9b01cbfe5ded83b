"""Pearson's r of predicted and right numbers: do they rise and fall together, on a line?

Pearson 1895: r = cov(a, b) / (s_a s_b). Where all predictions are the same, 0. Of several numbers, the mean of their r.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.regression_stats import correlation, score_numbers


class Pearson(Metric):
    """How far predicted and right numbers lie on a rising line, -1 to 1."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(predicted, right) of each row, each with its numbers; a bootstrap over rows."""
        return score_numbers(self.name, pairs, correlation, higher_is_better=True)
