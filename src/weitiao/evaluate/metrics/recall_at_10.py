"""Share of queries whose relevant document is among the ten nearest of all held-out documents.

Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", sec. 8.4, for one relevant document per query.
"""

from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric

K = 10


class RecallAt10(RowMetric):
    """Share of queries whose relevant document is among the ten nearest."""

    reads: ClassVar[Reads] = "choices"
    compares_texts: ClassVar[bool] = False

    def row_values(self, pairs: list[tuple[int, int]]) -> list[float]:
        """(rank of the relevant document from 1, documents) of each query."""
        return [float(rank <= K) for rank, _ in pairs]
