"""Mean reciprocal rank of the right document among all held-out ones: 1 is always first, 0.5 second on average.

Voorhees 1999, "The TREC-8 Question Answering Track Report", sec. 2: (1 / n) sum over queries of 1 / rank.
"""

from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, of_share, ratio_of_sums


class MRR(Metric):
    """Mean reciprocal rank of the right document."""

    reads: ClassVar[str] = "choices"

    def score(self, pairs: list[tuple[int, int]]) -> Score:
        """(rank of the right document from 1, documents) of each query."""
        found = ratio_of_sums(self.name, [1 / rank for rank, _ in pairs], [1.0] * len(pairs))
        return of_share(found)
