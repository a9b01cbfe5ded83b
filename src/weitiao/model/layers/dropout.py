"""Dropout with cheap random numbers: 16 bits per element, where torch on a CPU draws a float for each.

    y = x m / (1 - p)          m: 1 with probability 1 - p, else 0          Srivastava et al. 2014, JMLR 15, sec. 4

Four elements share one 64-bit draw of torch's own generator, so seeds, saved random states and recomputed layers work as
usual. The mask is stored with one byte per element. p is rounded to a multiple of 1 / 65,536, and the elements that are not
dropped are divided by one minus the rounded p.
"""

from typing import Any

import torch
from torch import Tensor, nn

NUM_VALUES = 1 << 16  # of a 16-bit random number


def dropout_rate(module: nn.Module) -> float:
    """The current dropout probability of a Dropout module: 0 in evaluation mode."""
    p: Any = module.p
    return p if module.training else 0.0


def apply_dropout(x: Tensor, p: float) -> Tensor:
    """x [...] with each element set to zero with probability p, and the others scaled up to keep the mean."""
    if not p:
        return x
    return torch.nn.functional.dropout(x, p) if x.is_cuda else _Dropout.apply(x, p)


class Dropout(nn.Dropout):
    """A replacement of torch's module."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.plain = False  # True: use torch's own function

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.plain else apply_dropout(input, dropout_rate(self))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        num_dropped = round(p * NUM_VALUES)  # of the 65,536 values
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        # as signed 16-bit numbers they are uniform over -32,768 ... 32,767: the lowest num_dropped mean "drop"
        mask = (draws.view(torch.int16)[: x.numel()] >= num_dropped - NUM_VALUES // 2).view(x.shape)
        ctx.save_for_backward(mask)
        ctx.scale = NUM_VALUES / (NUM_VALUES - num_dropped)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).mul_(ctx.scale), None
