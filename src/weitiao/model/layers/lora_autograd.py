"""Frozen linear layers that read the same input, and their low-rank changes, as one autograd node.

    y_i = x W_i^T + c_i + s_i (x A_i^T) B_i^T        A_i [R_i, D_in], B_i [D_out, R_i] in fp32; W_i in any dtype, or packed

What is kept for the backward pass is x, once, and x A^T [T, sum of R]. The gradient of W is never formed, no activation is
copied to fp32, a packed W is unpacked for each product and never kept, and products go through the rank first:

    dx = sum g_i W_i + G A          G = [s_1 g_1 B_1, s_2 g_2 B_2, ...]  [T, sum of R]          A = [A_1; A_2; ...]
    dA = G^T x                      dB_i = s_i g_i^T (x A_i^T)

So q, k and v (gate and up) have one product with A each way instead of three, and the sum in dx is made in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Unpack = Callable[[Tensor, torch.dtype], Tensor]
"""A weight as it is stored -> [D_out, D_in] in a dtype."""
KEPT = 4  # tensors of a layer


@dataclass(frozen=True)
class LoRAWeights:
    """A frozen layer and its change."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    unpack: Unpack = Tensor.to


def products(x: Tensor, layers: Sequence[LoRAWeights]) -> tuple[Tensor, ...]:
    """What each layer gives for x [..., D_in]: [..., D_out], in x's dtype."""
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias, layer.a, layer.b)]
    return _LowRank.apply(x, [y.scale for y in layers], [y.unpack for y in layers], *tensors)  # pyright: ignore


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scales: list[float], unpacks: list[Unpack], *given: Tensor) -> tuple[Tensor, ...]:
        flat, layers, made = x.flatten(0, -2), _by_layer(given), []  # [T, D_in]
        low = flat @ torch.cat([a for _, _, a, _ in layers]).to(x.dtype).T  # [T, sum of R]
        for (weight, bias, _, b), scale, unpack, mine in zip(layers, scales, unpacks, _split(low, layers)):
            w = unpack(weight, x.dtype)
            y = torch.mm(flat, w.T) if bias is None else torch.addmm(bias.to(x.dtype), flat, w.T)
            made.append(y.addmm_(mine, b.to(x.dtype).T, alpha=scale).unflatten(0, x.shape[:-1]))
        ctx.scales, ctx.unpacks = scales, unpacks
        ctx.save_for_backward(x, low, *given)
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, low, *given = ctx.saved_tensors
        layers, gs, flat = _by_layer(given), [g.flatten(0, -2) for g in grads], x.flatten(0, -2)
        low_g = torch.cat([(g @ b.to(g.dtype)).mul_(s) for g, (*_, b), s in zip(gs, layers, ctx.scales)], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = low_g @ torch.cat([a for _, _, a, _ in layers]).to(x.dtype)
            for g, (weight, *_), unpack in zip(gs, layers, ctx.unpacks):
                dx.addmm_(g, unpack(weight, g.dtype))
            dx = dx.unflatten(0, x.shape[:-1])
        back, das = [], (low_g.T @ flat).split([len(a) for _, _, a, _ in layers])
        for i, ((_, bias, a, b), mine) in enumerate(zip(layers, _split(low, layers))):
            wanted = ctx.needs_input_grad[3 + KEPT * i + 1]
            dc = gs[i].sum(0).to(bias.dtype) if wanted else None
            back += [None, dc, das[i].to(a.dtype), (gs[i].T @ mine).mul_(ctx.scales[i]).to(b.dtype)]
        return dx, None, None, *back


def _by_layer(given: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [given[at : at + KEPT] for at in range(0, len(given), KEPT)]


def _split(low: Tensor, layers: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """[T, sum of R] -> each layer's [T, R]."""
    return low.split([len(a) for _, _, a, _ in layers], 1)
