"""The contract Metric: a Score from pairs of prediction and reference."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from weitiao.core.registry import Component
from weitiao.core.score import Clusters, Score, mean_of_rows

Reads = Literal["row_losses", "row_bytes", "choices", "probabilities", "answers", "rankings", "tests", "schema", "refusal"]
"""What a metric's pairs are, of each row:

row_losses      (loss in nats, tokens that carry loss)
row_bytes       (loss in nats, bytes of the text that carries loss)
choices         (one of a closed set of answers, reference)
probabilities   (class -> its probability, reference)
answers         (generated text, or what is predicted, reference)
rankings        (ranks of a query's relevant documents from 1, number of documents)
tests, schema   (generated text, what the row's column of this name holds)
refusal         the same; "" where a row has none
"""

COLUMNS: tuple[Reads, ...] = ("tests", "schema", "refusal")
OPTIONAL_COLUMNS: tuple[Reads, ...] = ("refusal",)


class Metric(Component):
    """One file in evaluate/metrics/ holds one Metric: a frozen model of its settings."""

    reads: ClassVar[Reads]
    """What its pairs are."""
    compares_texts: ClassVar[bool] = True
    """It fits every objective that generates text; False: its pairs are numbers, tags or ranks."""

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

    higher_is_better: ClassVar[bool | None] = True

    @abstractmethod
    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """The value of each row."""

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """The mean over rows."""
        return mean_of_rows(self.name, self.row_values(pairs), clusters, self.higher_is_better)


class ColumnMetric(RowMetric):
    """A metric that judges an answer by a column of its row. A row is judged once; what is recorded is its value."""

    @abstractmethod
    def judge(self, pairs: list[tuple[str, str]]) -> list[float]:
        """The value of each row: (generated, what the column holds)."""

    def row_values(self, pairs: list[tuple[str, str | float]]) -> list[float]:
        """(generated, what the column holds) of each row; (generated, value) of a row that was judged before."""
        values = iter(self.judge([(text, cell) for text, cell in pairs if isinstance(cell, str)]))
        return [next(values) if isinstance(cell, str) else float(cell) for _, cell in pairs]

    def judged(self, pairs: list[tuple[str, str | float]]) -> list[tuple[str, str | float]]:
        """(generated, value) of each row."""
        return [(text, value) for (text, _), value in zip(pairs, self.row_values(pairs))]
