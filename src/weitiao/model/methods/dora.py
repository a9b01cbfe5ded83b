"""DoRA: LoRA learns the direction of each weight's rows, and a magnitude a row is learnt beside it.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, eq. 5 and sec. 4.3:

    W' = m * (W + s B A) / |W + s B A|          m [D_out, 1] starts at |W|; | | is a row's length, held constant for
                                                 the gradient (eq. 11)

The lengths are found without forming W + s B A:  |W_i|^2 + 2 s b_i (A W_i) + s^2 b_i (A A^T) b_i. Stored in PEFT's
format, and equal there.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.surgery import enabling, folding, peft_tensors, take_peft, wrap
from weitiao.model.layers.lora_autograd import LoRAWeights, products
from weitiao.model.layers.saved_tensors import in_autocast


class DoRA(Method):
    """Learn magnitude and direction of each weight's rows apart."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = "LoRA's own; DoRA likes it a little lower rather than higher (sec. 5.1)"

    rank: int = Field(default=16, ge=1)
    """Rank R of the change; DoRA does with half of LoRA's (sec. 5.5)."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""

    def attach(self, model: nn.Module) -> Attachment:
        """Replace every target layer by a Decomposed."""
        made: dict[str, DoRALinear] = wrap(
            model, self.target_modules, lambda name, layer: DoRALinear(layer, self.rank, self.alpha / self.rank)
        )

        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        config = lambda: peft_lora_config(model, made, self.rank, self.alpha, self.target_modules)  # noqa: E731
        return Attachment(
            trainable=trainable,
            set_enabled=enabling(made),
            merge=folding(model, made),
            as_peft=lambda: ({**config(), "use_dora": True}, peft_tensors(model, trainable)),
            from_peft=lambda tensors: take_peft(model, trainable, tensors),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "DoRA | None":
        """The DoRA that a PEFT adapter_config.json describes.

        Raises:
            ModelError: it asks for a variant that this file does not do.
        """
        if config.get("peft_type") != "LORA" or not config.get("use_dora"):
            return None
        for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias", "use_rslora"):
            if config.get(key):
                raise ModelError(f"this PEFT adapter uses {key}, which weitiao's dora does not do.")
        targets = config["target_modules"]
        targets = targets if isinstance(targets, str) else tuple(targets)
        return cls(rank=config["r"], alpha=config["lora_alpha"], target_modules=targets)


class DoRALinear(LowRankLinear):
    """A frozen linear layer, its low-rank change, and its rows' magnitudes."""

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__(base, rank, scale)
        with torch.no_grad():
            self.squares = self.weight().float().square().sum(1)  # [D_out] the base rows' squared lengths
            self.lora_magnitude_vector = nn.Parameter(self.lengths())

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """[D_out]: of the rows of W + s B A."""
        a, b, s = self.lora_A, self.lora_B, self.scale
        along = self.weight().to(a.dtype) @ a.T  # [D_out, R]
        squares = self.squares.to(a.device) + 2 * s * (along * b).sum(1) + s * s * ((b @ (a @ a.T)) * b).sum(1)
        return squares.clamp(min=1e-20).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        x = in_autocast(x)
        out = products(x, [LoRAWeights(self.weight(), None, self.lora_A, self.lora_B, self.scale)])[0]
        out = out * (self.lora_magnitude_vector / self.lengths()).to(out.dtype)
        bias = self.bias()
        return out if bias is None else out + bias.to(out.dtype)

    def forward_from(self, x: Tensor, plain: Tensor) -> Tensor:
        """What the layer gives for x where its base layer gives `plain`."""
        bias = self.bias()
        out = super().forward_from(x, plain if bias is None else plain - bias)
        out = out * (self.lora_magnitude_vector / self.lengths()).to(out.dtype)
        return out if bias is None else out + bias.to(out.dtype)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The base layer with its rows turned and stretched."""
        weight = self.weight()
        turned = weight.float() + (self.lora_B @ self.lora_A) * self.scale
        weight.copy_((turned * (self.lora_magnitude_vector / self.lengths())[:, None]).to(weight.dtype))
        return self.base_layer
