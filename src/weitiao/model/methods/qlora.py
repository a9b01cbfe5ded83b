"""QLoRA: LoRA beside a base that is stored in 4 bits (or 8).

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, eq. 5:

    y = unpack(W in 4 bits) x + b + s B A x            A, B in fp32, trained; W in nf4 with doubly quantised scales, frozen

All linear layers but the output head are stored so, whether they are targets or not; embeddings and norms are not. A
layer is packed as soon as it is read, one at a time, and only then moved to the device. Between forward and backward the
packed weight is all that is kept of W. Costs 4.13 bits a weight instead of 16, and the unpacking: twice for each product.

The base is another one: rounded. Switched off, this method leaves the rounded base, and what is measured before training
is measured on it. Merging gives a plain model of the rounded weights and the change, with the same answers. The adapter
that PEFT opens is a plain LoRA; on an unrounded base its answers are a little different.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import nn

from weitiao.core.method import Attachment
from weitiao.model.adapters.low_rank import LowRank
from weitiao.model.adapters.surgery import linear_names, restore, set_submodule
from weitiao.model.layers.quantized import QuantizedLinear


class QLoRA(LowRank):
    """Learn a low-rank change of each weight of a base stored in 4 or 8 bits."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = "2e-4 is what the QLoRA paper took up to 13B (arXiv 2305.14314, table 9)"
    rounds_base: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    """Bits a base weight."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Which 16 numbers four bits can be: made for normally distributed weights, or floats. Eight bits are whole numbers."""
    double_quant: bool = True
    """Store the scales of four bits in eight bits too: 0.37 bits a weight less."""

    def prepare(self, model: nn.Module, device: torch.device) -> None:
        """Store every linear layer but the head in few bits, one at a time."""
        full = [
            name for name in linear_names(model, "all-linear") if not isinstance(model.get_submodule(name), QuantizedLinear)
        ]
        for name in full:
            layer = model.get_submodule(name)
            set_submodule(model, name, QuantizedLinear(layer, self.bits, self.quant_type, self.double_quant, device))
        for weight in model.parameters() if full else ():
            weight.data = weight.data.to(device, copy=True)  # as it was read it is a view of the whole file, and keeps it

    def attach(self, model: nn.Module) -> Attachment:
        """Store the base in few bits, if that is not done yet; then LoRA."""
        self.prepare(model, next(model.parameters()).device)
        attachment, made = self.put_beside(model)
        fold = attachment.merge

        def merge() -> None:
            restore(model)
            fold()  # pyright: ignore[reportOptionalCall]

        return replace(attachment, merge=merge)
