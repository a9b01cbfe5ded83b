"""The layers between the matrix products, with hand-written backward passes that keep little.

Each is one autograd node: it keeps its inputs (which their neighbours keep anyhow) and makes the rest again. With compiled
kernels (compiled.py) what a node gave is made again, too, rather than kept by the product behind it (mixed.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.model.kernels.library import usable


class RMSNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps). Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4. Keeps x and one number a row.

    With r = 1 / rms and c = sum(g w x): dx = r g w - x r^3 c / D, dw = sum over rows of g x r. Gemma stores w - 1.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        ctx.eps, ctx.offset, ctx.kernels = float(eps), offset, usable(x)
        if ctx.kernels is not None:
            x = x.contiguous()
            y, inverse = _normed(ctx, x, weight)
            ctx.save_for_backward(x, weight, inverse)
            return y
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()  # [T, 1] fp32
        ctx.save_for_backward(x, weight, inverse)
        if offset:
            return (x * inverse).mul_(weight.float() + offset).to(x.dtype)
        return (x * inverse).to(x.dtype).mul_(weight)  # x * inverse is in fp32

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        x, weight, inverse = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0] and ctx.kernels is not None:
            g, dx, scales = g.contiguous(), torch.empty_like(x), weight.float() + ctx.offset
            ctx.kernels("rms_norm_back", x, scales, g, inverse, dx, inverse.numel(), x.shape[-1])
        elif ctx.needs_input_grad[0]:
            gw = g * (weight.float() + ctx.offset)  # fp32
            along = (gw * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])  # [T, 1]
            dx = gw.mul_(inverse).addcmul_(x.float(), along, value=-1).to(x.dtype)
        dw = (g.float() * x).mul_(inverse).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None

    @staticmethod
    def again(node: Any) -> Tensor:
        x, weight, _ = node.saved_tensors
        return _normed(node, x, weight)[0]


def _normed(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By the compiled kernel: y, and one over the root mean square."""
    y, inverse, scales = torch.empty_like(x), torch.empty(*x.shape[:-1], 1), weight.detach().float() + ctx.offset
    ctx.kernels("rms_norm", x, scales, y, inverse, inverse.numel(), x.shape[-1], ctx.eps, int(not ctx.offset))
    return y, inverse


class SwiGLU(torch.autograd.Function):
    """y = silu(a) * b. Shazeer 2020, arXiv 2002.05202, eq. 6. Keeps a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.kernels = usable(a, b)
        made = _gated(a, b, gelu=False)
        return torch.nn.functional.silu(a).mul_(b) if made is None else made

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        a, b = ctx.saved_tensors
        made = _gated_back(a, b, g, gelu=False)
        if made is not None:
            return made
        da = torch.ops.aten.silu_backward(g * b, a)  # g b (s + a s (1 - s)), s = sigmoid(a)
        return da, torch.nn.functional.silu(a).mul_(g)

    @staticmethod
    def again(node: Any) -> Tensor | None:
        return _gated(*node.saved_tensors, gelu=False)


class GeGLU(torch.autograd.Function):
    """y = gelu(a) * b, gelu by tanh. Shazeer 2020, arXiv 2002.05202, eq. 6. Keeps a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.kernels = usable(a, b)
        made = _gated(a, b, gelu=True)
        return torch.nn.functional.gelu(a, approximate="tanh").mul_(b) if made is None else made

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        a, b = ctx.saved_tensors
        made = _gated_back(a, b, g, gelu=True)
        if made is not None:
            return made
        da = torch.ops.aten.gelu_backward(g * b, a, approximate="tanh")
        return da, torch.nn.functional.gelu(a, approximate="tanh").mul_(g)

    @staticmethod
    def again(node: Any) -> Tensor | None:
        return _gated(*node.saved_tensors, gelu=True)


def _gated(a: Tensor, b: Tensor, gelu: bool) -> Tensor | None:
    """By the compiled kernel; None: there is none for these."""
    kernels = usable(a, b)
    if kernels is None:
        return None
    a, b = a.contiguous(), b.contiguous()
    y = torch.empty_like(a)
    kernels("gated", a, b, y, a.numel(), int(gelu))
    return y


def _gated_back(a: Tensor, b: Tensor, g: Tensor, gelu: bool) -> tuple[Tensor, Tensor] | None:
    kernels = usable(a, b, g)
    if kernels is None:
        return None
    a, b, g = a.contiguous(), b.contiguous(), g.contiguous()
    da, db = torch.empty_like(a), torch.empty_like(b)
    kernels("gated_back", a, b, g, da, db, a.numel(), int(gelu))
    return da, db


AGAIN: dict[str, Callable[[Any], Any]] = {f"{x.__name__}Backward": x.again for x in (RMSNorm, SwiGLU, GeGLU)}
"""By the name of a node that has `kernels`: makes what it gave."""


class Rotary(torch.autograd.Function):
    """Rotary positions, half-split form. Su et al. 2021, arXiv 2104.09864, eq. 34. Keeps nothing of x.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin);  backward: the same turn, the other way round
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, d]; cos, sin [T, 1, d / 2]."""
    half = x.shape[-1] // 2
    kernels = usable(x, cos, sin)
    if kernels is not None and x.stride(-1) == 1:
        out, cos, sin = torch.empty(x.shape, dtype=x.dtype), cos.contiguous(), sin.contiguous()
        kernels("rotate", x, x.stride(0), x.stride(1), cos, sin, out, *x.shape)
        return out
    out = torch.empty_like(x)
    x1, x2 = x[..., :half], x[..., half:]
    torch.mul(x1, cos, out=out[..., :half]).addcmul_(x2, sin, value=-1)  # in place: nine times as fast as x1 cos - x2 sin
    torch.mul(x2, cos, out=out[..., half:]).addcmul_(x1, sin)
    return out
