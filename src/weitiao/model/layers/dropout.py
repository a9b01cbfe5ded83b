"""Dropout whose random numbers are cheap: sixteen bits an element, where torch on a CPU draws a float for each.

    y = x m / (1 - p)          m: 1 with probability 1 - p, else 0          Srivastava et al. 2014, JMLR 15, sec. 4

Four elements share one draw of torch's own generator, so that seeds, saved states and recomputed layers work as ever. The
mask is kept as a byte an element. p is rounded to 1 / 65,536, and what is kept is divided by the rounded share.
"""

from typing import Any

import torch
from torch import Tensor, nn

BITS = 1 << 16


def rate(module: nn.Module) -> float:
    """What share a Dropout module drops now: nothing while it evaluates."""
    return module.p if module.training else 0.0  # pyright: ignore[reportReturnType]


def drop(x: Tensor, p: float) -> Tensor:
    """x [...] with a share p of its elements set to nought, the others larger in turn."""
    if not p:
        return x
    return torch.nn.functional.dropout(x, p) if x.is_cuda else _Dropped.apply(x, p)  # pyright: ignore[reportReturnType]


class Dropout(nn.Dropout):
    """Stands in the place of torch's."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.plain = False  # by torch's own function

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.plain else drop(input, rate(self))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        below = round(p * BITS)
        drawn = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = (drawn.view(torch.int16)[: x.numel()] >= below - BITS // 2).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = BITS / (BITS - below)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None
