"""NF4: each linear weight in 4 bits, as one of 16 values that a normal distribution takes equally often.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, sec. 3: 64 weights share their
largest absolute value, and double quantization stores those values in 8 bits too (4.13 bits per weight instead of 4.5).

The file is bitsandbytes' own format, which transformers and vLLM open where bitsandbytes is installed. The numbers are
those that method qlora trains on: a QLoRA Run that is merged and compressed again to NF4 keeps its base's rounding, but not
exactly its change.
"""

from typing import Any, ClassVar

from torch import Tensor

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.core.four_bit import as_tensors
from weitiao.core.hardware import needs
from weitiao.deploy.compression.quantize_weights import refuse_transposed

QUANT_TYPE = "nf4"


class NF4(WeightCompressor):
    """Store each linear weight as one of 16 values times the scale of its block, in bitsandbytes' format."""

    result: ClassVar[str] = "quantized"

    double_quant: bool = True
    """Quantize the scales too, to 8 bits: saves 0.37 bits per weight."""

    def plan(self, subject: Subject) -> Compression:
        """Every linear layer, as bitsandbytes stores it."""
        needs("bitsandbytes", "qlora", "method nf4")
        refuse_transposed(subject)

        def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
            if name not in subject.linears:
                return {name: tensor}
            return as_tensors(name, tensor, QUANT_TYPE, self.double_quant)

        return Compression(change, {"quantization_config": bitsandbytes_config(self.double_quant, subject.others)})


def bitsandbytes_config(double_quant: bool, skipped: Any) -> dict[str, Any]:
    """`quantization_config` of config.json, as transformers writes it."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": QUANT_TYPE,
        "bnb_4bit_use_double_quant": double_quant,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": list(skipped) or None,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
