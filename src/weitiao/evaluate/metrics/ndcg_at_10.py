"""nDCG@10: relevant documents among the ten nearest, the earlier the better; 1: all of them stand first.

Järvelin & Kekäläinen 2002, with the logarithm to base 2 and relevance 0 or 1; scikit-learn's ndcg_score(k=10):

    DCG = sum of 1 / log2(1 + rank) over relevant documents of rank 10 or less       nDCG = DCG / the largest possible DCG
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric

K = 10


class NDCGAt10(RowMetric):
    """Normalized discounted cumulative gain of the ten nearest documents; the mean over queries."""

    reads: ClassVar[Reads] = "rankings"
    compares_texts: ClassVar[bool] = False

    def row_values(self, pairs: list[tuple[Sequence[int], int]]) -> list[float]:
        """(ranks of the relevant documents from 1, documents) of each query."""
        return [_gain(ranks) / _gain(range(1, len(ranks) + 1)) for ranks, _ in pairs]


def _gain(ranks: Sequence[int]) -> float:
    return sum(1 / math.log2(1 + rank) for rank in ranks if rank <= K)
