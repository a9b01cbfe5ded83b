"""Share of queries whose relevant document is among the ten nearest of all held-out documents.

Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", sec. 8.4, for one relevant document per query.
"""

from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion

K = 10


class RecallAt10(Metric):
    """Share of queries whose relevant document is among the ten nearest."""

    reads: ClassVar[str] = "choices"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[int, int]]) -> Score:
        """(rank of the relevant document from 1, documents) of each query."""
        return proportion(self.name, sum(rank <= K for rank, _ in pairs), len(pairs))
