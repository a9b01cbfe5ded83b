"""The layers between the matrix products, with hand-written backward passes that store little.

Each is one autograd node: it saves its inputs (which its neighbors save anyway) and computes everything else again. With
compiled kernels (kernels/library.py) a node's output is computed again too, instead of being saved by the matrix product
after it (saved_tensors.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.model.kernels.generation import kernels_for_generation
from weitiao.model.kernels.library import kernels_for


class RMSNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps). Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4. Saves x and one number per row.

    With r = 1 / rms and c = sum(g w x): dx = r g w - x r^3 c / D, dw = sum over rows of g x r. `offset` is 1 for Gemma,
    which stores w - 1.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        ctx.eps, ctx.offset, ctx.kernels = float(eps), offset, kernels_for(x)
        if ctx.kernels is not None:
            x = x.contiguous()
            y, inverse_rms = _rms_norm(ctx, x, weight)
            ctx.save_for_backward(x, weight, inverse_rms)
            return y
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        inverse_rms = square.div_(x.shape[-1]).add_(eps).rsqrt_()  # [T, 1] fp32
        ctx.save_for_backward(x, weight, inverse_rms)
        # rounded where the families' own code rounds: Gemma multiplies by the weight in fp32, Llama after rounding
        if offset:
            return (x * inverse_rms).mul_(weight.float() + offset).to(x.dtype)
        return (x * inverse_rms).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        x, weight, inverse_rms = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0] and ctx.kernels is not None:
            g, dx, scales = g.contiguous(), torch.empty_like(x), weight.float() + ctx.offset
            ctx.kernels("rms_norm_backward", x, scales, g, inverse_rms, dx, inverse_rms.numel(), x.shape[-1])
        elif ctx.needs_input_grad[0]:
            gw = g * (weight.float() + ctx.offset)  # fp32
            factor = (gw * x).sum(-1, keepdim=True).mul_(inverse_rms.pow(3)).div_(x.shape[-1])  # [T, 1]
            dx = gw.mul_(inverse_rms).addcmul_(x.float(), factor, value=-1).to(x.dtype)
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (g.float() * x).mul_(inverse_rms).flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dw, None, None

    @staticmethod
    def recompute(node: Any) -> Tensor:
        """The output of a node of this kind, from its saved tensors."""
        x, weight, _ = node.saved_tensors
        return _rms_norm(node, x, weight)[0]


def _rms_norm(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By the compiled kernel: y, and the inverse root mean square of each row."""
    y, inverse_rms, scales = torch.empty_like(x), torch.empty(*x.shape[:-1], 1), weight.detach().float() + ctx.offset
    size = (inverse_rms.numel(), x.shape[-1])
    ctx.kernels("rms_norm", x, scales, y, inverse_rms, *size, ctx.eps, int(not ctx.offset))
    return y, inverse_rms


class SwiGLU(torch.autograd.Function):
    """y = silu(a) * b. Shazeer 2020, arXiv 2002.05202, eq. 6. Saves a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.kernels = kernels_for(a, b)
        y = _gated(a, b, gelu=False)
        return torch.nn.functional.silu(a).mul_(b) if y is None else y

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        a, b = ctx.saved_tensors
        gradients = _gated_backward(a, b, g, gelu=False)
        if gradients is not None:
            return gradients
        da = torch.ops.aten.silu_backward(g * b, a)  # g b (s + a s (1 - s)), s = sigmoid(a)
        return da, torch.nn.functional.silu(a).mul_(g)

    @staticmethod
    def recompute(node: Any) -> Tensor | None:
        """The output of a node of this kind, from its saved tensors."""
        return _gated(*node.saved_tensors, gelu=False)


class GeGLU(torch.autograd.Function):
    """y = gelu(a) * b, gelu by tanh. Shazeer 2020, arXiv 2002.05202, eq. 6. Saves a and b."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.kernels = kernels_for(a, b)
        y = _gated(a, b, gelu=True)
        return torch.nn.functional.gelu(a, approximate="tanh").mul_(b) if y is None else y

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        a, b = ctx.saved_tensors
        gradients = _gated_backward(a, b, g, gelu=True)
        if gradients is not None:
            return gradients
        da = torch.ops.aten.gelu_backward(g * b, a, approximate="tanh")
        return da, torch.nn.functional.gelu(a, approximate="tanh").mul_(g)

    @staticmethod
    def recompute(node: Any) -> Tensor | None:
        """The output of a node of this kind, from its saved tensors."""
        return _gated(*node.saved_tensors, gelu=True)


def _gated(a: Tensor, b: Tensor, gelu: bool) -> Tensor | None:
    """By the compiled kernel; None: there is none for these tensors."""
    kernels = kernels_for(a, b)
    if kernels is None:
        return None
    a, b = a.contiguous(), b.contiguous()
    y = torch.empty_like(a)
    kernels("gated", a, b, y, a.numel(), int(gelu))
    return y


def _gated_backward(a: Tensor, b: Tensor, g: Tensor, gelu: bool) -> tuple[Tensor, Tensor] | None:
    """(da, db) by the compiled kernel; None: there is none for these tensors."""
    kernels = kernels_for(a, b, g)
    if kernels is None:
        return None
    a, b, g = a.contiguous(), b.contiguous(), g.contiguous()
    da, db = torch.empty_like(a), torch.empty_like(b)
    kernels("gated_backward", a, b, g, da, db, a.numel(), int(gelu))
    return da, db


RECOMPUTE: dict[str, Callable[[Any], Any]] = {f"{x.__name__}Backward": x.recompute for x in (RMSNorm, SwiGLU, GeGLU)}
"""By the name of an autograd node that has `kernels`: the function that computes the node's output again."""


class Rotary(torch.autograd.Function):
    """Rotary positions, half-split form. Su et al. 2021, arXiv 2104.09864, eq. 34. Saves nothing of x.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin);  backward: the same rotation in the other direction
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, d]; cos, sin [T, 1, d / 2]."""
    half = x.shape[-1] // 2
    kernels = kernels_for(x, cos, sin)
    if kernels is not None and x.stride(-1) == 1:
        out, cos, sin = torch.empty(x.shape, dtype=x.dtype), cos.contiguous(), sin.contiguous()
        kernels("rotate", x, x.stride(0), x.stride(1), cos, sin, out, *x.shape)
        return out
    out = torch.empty_like(x)
    x1, x2 = x[..., :half], x[..., half:]
    torch.mul(x1, cos, out=out[..., :half]).addcmul_(x2, sin, value=-1)  # in place: nine times as fast as x1 cos - x2 sin
    torch.mul(x2, cos, out=out[..., half:]).addcmul_(x1, sin)
    return out


# -- the same, also where text is generated ---------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """See RMSNorm."""
    kernels = kernels_for_generation(x, weight)
    return RMSNorm.apply(x, weight, eps, offset) if kernels is None else kernels.rms_norm(x, weight, eps, offset)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """See SwiGLU."""
    kernels = kernels_for_generation(a, b)
    return SwiGLU.apply(a, b) if kernels is None else kernels.gated(a, b, gelu=False)


def geglu(a: Tensor, b: Tensor) -> Tensor:
    """See GeGLU."""
    kernels = kernels_for_generation(a, b)
    return GeGLU.apply(a, b) if kernels is None else kernels.gated(a, b, gelu=True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See Rotary."""
    kernels = kernels_for_generation(x, cos, sin)
    return Rotary.apply(x, cos, sin) if kernels is None else kernels.rotate(x, cos, sin)
