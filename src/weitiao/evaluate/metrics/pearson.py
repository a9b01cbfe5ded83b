"""Pearson's r of predicted and reference numbers: linear correlation.

Pearson 1895: r = cov(a, b) / (s_a s_b). 0 where all predictions are equal. With several numbers per row,
the mean of their r.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.regression_stats import correlation, score_numbers


class Pearson(Metric):
    """Linear correlation of predicted and reference numbers, -1 to 1."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(predicted, reference) numbers of each row; a bootstrap over rows."""
        return score_numbers(self.name, pairs, clusters, correlation, higher_is_better=True)
