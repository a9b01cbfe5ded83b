"""Mean reciprocal rank of the relevant document among all held-out documents; 1: always ranked first.

Voorhees 1999, "The TREC-8 Question Answering Track Report", sec. 2: (1 / n) sum over queries of 1 / rank.
"""

from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, as_fraction, ratio_of_sums


class MRR(Metric):
    """Mean reciprocal rank of the relevant document."""

    reads: ClassVar[str] = "choices"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[int, int]]) -> Score:
        """(rank of the relevant document from 1, documents) of each query."""
        return as_fraction(ratio_of_sums(self.name, [1 / rank for rank, _ in pairs], [1.0] * len(pairs)))
