"""Bits per byte: the loss per byte of text (UTF-8), so that models with different tokenizers compare.

    (sum of losses in nats / ln 2) / bytes of the text that carries loss           both summed over all rows

Gao et al. 2020, arXiv 2101.00027, sec. 3.1; as lm-evaluation-harness' bits_per_byte. A stop token adds to the loss and has
no bytes. The interval is a bootstrap over rows.
"""

import math
from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, ratio_of_sums


class BitsPerByte(Metric):
    """Loss in bits per byte of text; lower is better."""

    reads: ClassVar[Reads] = "row_bytes"

    def score(self, pairs: list[tuple[float, float]], clusters: Clusters = ()) -> Score:
        """(loss in nats, bytes) of each row."""
        bits = [nats / math.log(2) for nats, _ in pairs]
        return ratio_of_sums(self.name, bits, [count for _, count in pairs], clusters=clusters)
