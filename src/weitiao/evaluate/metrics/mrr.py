"""Mean reciprocal rank of the relevant document among all held-out documents; 1: always ranked first.

Voorhees 1999, "The TREC-8 Question Answering Track Report", sec. 2: (1 / n) sum over queries of 1 / rank.
"""

from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric


class MRR(RowMetric):
    """Mean reciprocal rank of the relevant document."""

    reads: ClassVar[Reads] = "choices"
    compares_texts: ClassVar[bool] = False

    def row_values(self, pairs: list[tuple[int, int]]) -> list[float]:
        """(rank of the relevant document from 1, documents) of each query."""
        return [1 / rank for rank, _ in pairs]
