"""QLoRA: LoRA on a base that is stored in 4 bits (or 8).

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, eq. 5:

    y = dequantize(W in 4 bits) x + b + s B A x        A, B in fp32, trained; W in nf4 with double quantization, frozen

All linear layers except the output head are quantized, whether they are targets or not; embeddings and norms are not. Each
layer is quantized right after it is read, one at a time, and only then moved to the device. Between forward and backward
pass only the packed weight of W is stored. It costs 4.13 bits per weight instead of 16, and each product dequantizes W.

The base is another one: the quantized one. Switched off, this method leaves the quantized base, and the scores before
training are measured on it. Merging gives a plain model of the dequantized weights plus the change, with the same outputs.
The PEFT adapter is a plain LoRA; on the original base its outputs differ slightly.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment
from weitiao.model.adapters.low_rank import LowRank, LowRankLinear
from weitiao.model.adapters.module_replacement import FEW_BITS, dequantize_layers, linear_names
from weitiao.model.layers.quantized import QuantizedLinear


class QLoRA(LowRank):
    """Train a low-rank change of each weight of a base stored in 4 or 8 bits."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[Message] = Message(
        "2e-4 is the QLoRA paper's value up to 13B (arXiv 2305.14314, table 9)"
    )
    rounds_base: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    """Bits per base weight."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4 bits: nf4 for normally distributed weights, or fp4 floats. 8 bits are always int8."""
    double_quant: bool = True
    """Quantize the scales of 4 bits too, to 8 bits: saves 0.37 bits per weight."""

    def prepare(self, model: nn.Module, device: torch.device) -> None:
        """Quantize every linear layer except the head, one at a time."""
        names = [name for name in linear_names(model, "all-linear") if not isinstance(model.get_submodule(name), FEW_BITS)]
        for name in names:  # by name: a list of the layers would keep all full-precision weights in memory
            layer = model.get_submodule(name)
            model.set_submodule(name, QuantizedLinear(layer, self.bits, self.quant_type, self.double_quant, device))
        for weight in model.parameters() if names else ():
            weight.data = weight.data.to(
                device, copy=True
            )  # a weight as read is a view that keeps the whole file in memory

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Quantize the base, if that is not done yet, then attach LoRA."""
        self.prepare(model, next(model.parameters()).device)
        attachment, _ = self.attach_layers(model, LowRankLinear)
        merge_lora = attachment.merge
        assert merge_lora is not None

        def merge() -> None:
            dequantize_layers(model)
            merge_lora()

        return replace(attachment, merge=merge)
