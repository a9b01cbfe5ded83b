"""Weight-only int4 in groups: each linear weight in 4 bits, with a scale for each group of inputs, rounded to the nearest.

    w' = (q - z) s        symmetric: z = 0, s = max |w| / 7.5 of the group; asymmetric: s = (max - min) / 15, a zero point z

No calibration and no error compensation: the baseline that GPTQ (Frantar et al. 2022, arXiv 2210.17323) compares with as
RTN. 32 weights with a 16-bit scale cost 4.5 bits each, 128 cost 4.13. Embeddings, norms and heads
stay as they are.
"""

from typing import ClassVar, Literal

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.core.quantization import QuantizationScheme
from weitiao.deploy.compression.quantize_weights import rounded_to_nearest


class Int4(WeightCompressor):
    """Store each linear weight in 4 bits, with a scale for each group of its inputs."""

    result: ClassVar[str] = "quantized"

    group_size: Literal[32, 64, 128] = 32
    """Neighbouring inputs that share a scale: smaller groups lose less and cost more."""
    symmetric: bool = True
    """Without zero points, as all readers expect. With them the error is smaller and the file 0.13 bits per weight larger
    (groups of 32); transformers then unpacks the weights when it loads them."""

    def plan(self, subject: Subject) -> Compression:
        """Round every linear layer."""
        return rounded_to_nearest(subject, QuantizationScheme(4, self.group_size, self.symmetric))
