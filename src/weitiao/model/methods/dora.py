"""DoRA: LoRA trains the direction of each weight row, and one magnitude per row is trained separately.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, eq. 5 and sec. 4.3:

    W' = m * (W + s B A) / |W + s B A|          m [D_out, 1] starts at |W|; | | is the norm of each row, treated as a
                                                 constant for the gradient (eq. 11)

The norms are computed without forming W + s B A:  |W_i|^2 + 2 s b_i (A W_i) + s^2 b_i (A A^T) b_i. Stored in PEFT's
format, with the same logits there.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.module_replacement import make_merge, make_set_enabled, replace_linears
from weitiao.model.adapters.peft_format import load_peft_tensors, peft_tensors
from weitiao.model.layers.lora_autograd import LoRAWeights, lora_linear
from weitiao.model.layers.saved_tensors import to_autocast_dtype


class DoRA(Method):
    """Train magnitude and direction of each weight row separately."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[Message] = Message("LoRA's rate; for DoRA rather a little lower than higher (sec. 5.1)")
    low_rank: ClassVar[bool] = True

    rank: int = Field(default=16, ge=1)
    """Rank R of the change; half of LoRA's is enough (sec. 5.5)."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by a DoRALinear."""
        layers: dict[str, DoRALinear] = replace_linears(
            model, self.target_modules, lambda name, layer: DoRALinear(layer, self.rank, self.alpha / self.rank)
        )
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config = peft_lora_config(model, layers, self.rank, self.alpha, self.target_modules)
            return {**config, "use_dora": True}, peft_tensors(model, trainable)

        return Attachment(
            trainable=trainable,
            set_enabled=make_set_enabled(layers),
            merge=make_merge(model, layers),
            as_peft=as_peft,
            from_peft=lambda tensors: load_peft_tensors(model, trainable, tensors),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "DoRA | None":
        """The DoRA that a PEFT adapter_config.json describes.

        Raises:
            ModelError: it uses a variant that this file does not implement.
        """
        if config.get("peft_type") != "LORA" or not config.get("use_dora"):
            return None
        for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias", "use_rslora"):
            if config.get(key):
                raise ModelError("this PEFT adapter uses {key}, which weitiao's dora does not support.", key=key)
        targets = config["target_modules"]
        targets = targets if isinstance(targets, str) else tuple(targets)
        return cls(rank=config["r"], alpha=config["lora_alpha"], target_modules=targets)


class DoRALinear(LowRankLinear):
    """A frozen linear layer, its low-rank change, and the magnitudes of its weight rows."""

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__(base, rank, scale)
        with torch.no_grad():
            self.base_squared_norms = self.weight().float().square().sum(1)  # [D_out]
            self.lora_magnitude_vector = nn.Parameter(self.row_norms())

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """[D_out]: the norms of the rows of W + s B A, without forming it."""
        a, b, s = self.lora_A, self.lora_B, self.scale
        w_a = self.weight().to(a.dtype) @ a.T  # [D_out, R]
        squared = self.base_squared_norms.to(a.device) + 2 * s * (w_a * b).sum(1) + s * s * ((b @ (a @ a.T)) * b).sum(1)
        return squared.clamp(min=1e-20).sqrt()  # rounding may leave a norm of zero slightly negative

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        x = to_autocast_dtype(x)
        out = lora_linear(x, [LoRAWeights(self.weight(), None, self.lora_A, self.lora_B, self.scale)])[0]
        return self._rescale(out)

    def forward_from(self, x: Tensor, base_output: Tensor) -> Tensor:
        """The layer's output for x, from its base layer's output."""
        bias = self.bias()
        return self._rescale(super().forward_from(x, base_output if bias is None else base_output - bias))

    def _rescale(self, out: Tensor) -> Tensor:
        """Scale each output channel to its magnitude, then add the bias, which the magnitudes do not touch."""
        bias = self.bias()
        out = out * (self.lora_magnitude_vector / self.row_norms()).to(out.dtype)
        return out if bias is None else out + bias.to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with directions and magnitudes merged into its weight."""
        weight = self.weight()
        changed = weight.float() + (self.lora_B @ self.lora_A) * self.scale
        weight.copy_((changed * (self.lora_magnitude_vector / self.row_norms())[:, None]).to(weight.dtype))
        return self.base_layer
