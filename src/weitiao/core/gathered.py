"""x[at] where `at` may name a row many times: its gradient is their sum, in fp32 and in a fixed order.

torch's own adds them up in x's dtype (in bf16 a sum stops growing after some hundreds), and on a CPU with several threads
in an order that changes from run to run.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def index_select_fp32_grad(x: Tensor, at: Tensor) -> Tensor:
    """x [N, ...], at [...] of whole numbers: [*at.shape, *x.shape[1:]]."""
    return _Gathered.apply(x, at)  # pyright: ignore[reportReturnType]


def sums(like: Tensor, rows: int) -> Tensor:
    """Noughts [rows, ...] to add gradients like these up in: fp32 at least."""
    return like.new_zeros(rows, *like.shape[1:], dtype=torch.promote_types(like.dtype, torch.float32))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.rows = len(x)
        return x[at]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (at,) = ctx.saved_tensors
        g = grads[0].flatten(0, at.ndim - 1) if at.ndim else grads[0][None]
        found = sums(g, ctx.rows)
        return found.index_add_(0, at.flatten(), g.to(found.dtype)).to(g.dtype), None
