"""Weight-only int8: each linear weight in 8 bits, one scale for each output channel, symmetric, rounded to the nearest.

    w' = q s        s = max |w| / 127.5 of the channel, q in [-128, 127]

Activations are never rounded, so a row's answer does not depend on its neighbours. (Dettmers et al. 2022, "LLM.int8()",
arXiv 2208.07339, sec. 2.1: vector-wise scales; here of the weights alone.) Embeddings, norms and heads stay as they are.
"""

from typing import ClassVar

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.core.quantization import QuantizationScheme
from weitiao.deploy.compression.quantize_weights import rounded_to_nearest


class Int8(WeightCompressor):
    """Store each linear weight in 8 bits, with one scale per output channel."""

    result: ClassVar[str] = "quantized"

    def plan(self, subject: Subject) -> Compression:
        """Round every linear layer."""
        return rounded_to_nearest(subject, QuantizationScheme(bits=8))
