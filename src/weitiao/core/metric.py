"""The contract Metric: a Score from pairs of prediction and reference."""

from abc import abstractmethod
from typing import Any, ClassVar

from weitiao.core.registry import Component
from weitiao.core.score import Clusters, Score, mean_of_rows


class Metric(Component):
    """One file in evaluate/metrics/ holds one Metric: a frozen model of its settings."""

    reads: ClassVar[str]
    """What its pairs are: "row_losses", "choices" (one of a closed set of answers) or "answers" (generated text)."""
    compares_texts: ClassVar[bool] = True
    """Its pairs may be texts, such as generated answers; False: numbers, tags or ranks."""

    @abstractmethod
    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """The score of all rows.

        Args:
            pairs: (prediction, reference) of each row; for "row_losses" (sum, count).
            clusters: of each row, what it belongs to; the interval is then over clusters.
        """

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float] | None:
        """The value of each row, whose mean is the score; None: the score is of all rows together."""
        return None


class RowMetric(Metric):
    """A metric that is the mean of a value per row."""

    @abstractmethod
    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """The value of each row, from 0 to 1, better when higher."""

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """The mean over rows."""
        return mean_of_rows(self.name, self.row_values(pairs), clusters)
