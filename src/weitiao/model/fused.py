"""The layers between the matrix products, with hand-written backward passes that keep little.

Each is one autograd node: it keeps its inputs (which their neighbours keep anyhow) and makes the rest again.
"""

import torch
from torch import Tensor


class RMSNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps). Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4. Keeps x and one number a row.

    With n = x / rms and c = mean(g w n): dx = (g w - n c) / rms, dw = sum over rows of g n.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rms = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)  # [T, 1] fp32, the inverse
        ctx.save_for_backward(x, weight, rms)
        return (x.float() * rms).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,) = grads
        x, weight, rms = ctx.saved_tensors
        n = x.float() * rms  # [T, D]
        gw = g.float() * weight.float()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = gw.sub_(n * (gw * n).mean(-1, keepdim=True)).mul_(rms).to(x.dtype)
        dw = (g.float() * n).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, None


class SwiGLU(torch.autograd.Function):
    """y = silu(a) * b. Shazeer 2020, arXiv 2002.05202, eq. 6. Keeps a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.nn.functional.silu(a).mul_(b)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,) = grads
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        silu = a * s
        db = g * silu
        da = silu.mul_(1 - s).add_(s).mul_(b).mul_(g)  # g b (s + a s (1 - s))
        return da, db


class Rotary(torch.autograd.Function):
    """Rotary positions, half-split form. Su et al. 2021, arXiv 2104.09864, eq. 34. Keeps nothing of x.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin);  backward: the same turn, the other way round
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, d]; cos, sin [T, 1, d / 2]."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    x1, x2 = x[..., :half], x[..., half:]
    out[..., :half] = x1 * cos - x2 * sin
    out[..., half:] = x2 * cos + x1 * sin
    return out
