"""Mean average precision: of each relevant document, the share of relevant ones up to its rank; the mean over queries.

Manning, Raghavan & Schütze 2008, "Introduction to Information Retrieval", sec. 8.4. With one relevant document per query it
equals mrr.
"""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric


class MAP(RowMetric):
    """Mean average precision of the rankings of all queries."""

    reads: ClassVar[Reads] = "rankings"
    compares_texts: ClassVar[bool] = False

    def row_values(self, pairs: list[tuple[Sequence[int], int]]) -> list[float]:
        """(ranks of the relevant documents from 1, documents) of each query."""
        return [sum(i / rank for i, rank in enumerate(sorted(ranks), 1)) / len(ranks) for ranks, _ in pairs]
