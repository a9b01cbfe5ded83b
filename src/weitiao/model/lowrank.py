"""A frozen linear layer and its low-rank change, as one autograd node.

    y = x W^T + b + s (x A^T) B^T          A [R, D_in], B [D_out, R] in fp32; W [D_out, D_in] in any dtype

What is kept for the backward pass is x (shared with its neighbours: q, k and v keep one and the same) and x A^T
[T, R]. The gradient of W is never formed, no activation is copied to fp32, and products go through the rank first:
dx = g W + s (g B) A,  dA = s (g B)^T x,  dB = s g^T (x A^T).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.flatten(0, -2)  # [T, D_in]
        w, low_a, low_b = weight.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        low = flat @ low_a.T  # [T, R]
        y = torch.mm(flat, w.T) if bias is None else torch.addmm(bias.to(x.dtype), flat, w.T)
        y.addmm_(low, low_b.T, alpha=scale)
        ctx.scale = scale
        ctx.save_for_backward(x, weight, a, b, low)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, weight, a, b, low = ctx.saved_tensors
        g, flat = grads[0].flatten(0, -2), x.flatten(0, -2)
        low_g = (g @ b.to(g.dtype)).mul_(ctx.scale)  # [T, R]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(g, weight.to(g.dtype)).addmm_(low_g, a.to(g.dtype)).unflatten(0, x.shape[:-1])
        db = g.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        da = (low_g.T @ flat).to(a.dtype)
        dlow_b = (g.T @ low).mul_(ctx.scale).to(b.dtype)
        return dx, None, db, da, dlow_b, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x W^T + b + s (x A^T) B^T as one autograd node."""
    return _LowRank.apply(x, weight, bias, a, b, scale)  # pyright: ignore[reportReturnType]


class LowRankLinear(nn.Module):
    """Stands in the place of a linear layer. PEFT's names, so that files travel both ways."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, train_bias: bool = False) -> None:
        super().__init__()
        self.base_layer = base
        out_features, in_features = self.weight().shape
        if rank > max(out_features, in_features):
            width = f"{in_features} to {out_features}"
            raise RecipeError(f"rank {rank} is above the width of a layer ({width}); take a lower one.")
        device = self.weight().device
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32, device=device))
        self.scale, self.on = scale, True
        self.dropout = nn.Dropout(dropout)
        if train_bias and self.bias() is not None:
            self.bias().requires_grad_(True)  # pyright: ignore[reportOptionalMemberAccess]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def weight(self) -> Tensor:
        """[D_out, D_in], whatever the base layer's own layout."""
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight  # pyright: ignore

    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        a, b = self.factors()
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.training and self.dropout.p > 0:
            low = torch.nn.functional.linear(self.dropout(x), a.to(x.dtype))
            return self.base_layer(x) + torch.nn.functional.linear(low, b.to(x.dtype)) * self.scale
        return product(x, self.weight(), self.bias(), a, b, self.scale)

    @property
    def own(self) -> tuple[str, ...]:
        """Names of its parameters, without the base layer's."""
        return tuple(name for name, _ in self.named_parameters() if not name.startswith("base_layer."))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, D_in] and B [D_out, R] of the change."""
        return self.lora_A, self.lora_B

    def tuned(self, x: Tensor, plain: Tensor) -> Tensor:
        """What the layer gives for x where its base layer gives `plain`."""
        a, b = (half.to(plain.dtype) for half in self.factors())
        low = x.flatten(0, -2).to(plain.dtype) @ a.T  # [T, R]
        return torch.addmm(plain.flatten(0, -2), low, b.T, alpha=self.scale).view(plain.shape)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The base layer with the change added to its weight (in fp32, then rounded once)."""
        a, b = self.factors()
        change, weight = (b @ a) * self.scale, self.weight()
        weight.copy_((weight.float() + change).to(weight.dtype))
        return self.base_layer


def peft_lora_config(
    model: nn.Module, made: Mapping[str, LowRankLinear], rank: int, alpha: float, targets: str | tuple[str, ...]
) -> dict[str, Any]:
    """What PEFT's adapter_config.json says of low-rank changes."""
    if targets == "all-linear":
        targets = tuple(sorted({name.rpartition(".")[2] for name in made}))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(module.base_layer, Conv1D) for module in made.values()),
        "inference_mode": True,
        "init_lora_weights": True,
    }
