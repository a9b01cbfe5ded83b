"""Spearman's rho of predicted and reference numbers: rank correlation.

Spearman 1904: Pearson's r of the ranks; ties share their mean rank. With several numbers per row, the mean of
their rho.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.regression_stats import correlation, ranks, score_numbers


class Spearman(Metric):
    """Rank correlation of predicted and reference numbers, -1 to 1."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(predicted, reference) numbers of each row; a bootstrap over rows."""
        return score_numbers(
            self.name, pairs, clusters, lambda a, b: correlation(ranks(a), ranks(b)), higher_is_better=True
        )
