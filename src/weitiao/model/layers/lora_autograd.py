"""Frozen linear layers that read the same input, and their low-rank changes, as one autograd node.

    y_i = x W_i^T + c_i + s_i (x A_i^T) B_i^T        A_i [R_i, D_in], B_i [D_out, R_i] in fp32; W_i in any dtype, or packed

Saved for the backward pass are x, once, and x A^T [T, sum of R]. The gradient of W is never computed, no activation is
copied to fp32, a packed W is unpacked for each product and never stored, and products go through the rank first:

    dx = sum g_i W_i + G A          G = [s_1 g_1 B_1, s_2 g_2 B_2, ...]  [T, sum of R]          A = [A_1; A_2; ...]
    dA = G^T x                      dB_i = s_i g_i^T (x A_i^T)

So q, k and v (or gate and up) share one product with A in each direction instead of three, and the sum in dx is in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.model.layers.few_rows import linear_few_rows

Unpack = Callable[[Tensor, torch.dtype], Tensor]
"""(a weight as it is stored, a dtype) -> [D_out, D_in] in that dtype."""


@dataclass(frozen=True)
class LoRAWeights:
    """A frozen layer and its low-rank change."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    unpack: Unpack = Tensor.to


class _Tensors(NamedTuple):
    """The tensors of a layer, in the order in which autograd passes them."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor


NUM_TENSORS = len(_Tensors._fields)
NUM_OPTIONS = 3  # arguments of `forward` before the layers' tensors: x, scales, unpacks


def lora_linear(x: Tensor, layers: Sequence[LoRAWeights]) -> tuple[Tensor, ...]:
    """Each layer's output for x [..., D_in]: [..., D_out], in x's dtype."""
    if torch.is_inference_mode_enabled():
        return tuple(_generating(x.flatten(0, -2), layer).unflatten(0, x.shape[:-1]) for layer in layers)
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias, layer.a, layer.b)]
    scales, unpacks = [layer.scale for layer in layers], [layer.unpack for layer in layers]
    return _LoRALinear.apply(x, scales, unpacks, *tensors)


def _generating(x: Tensor, layer: LoRAWeights) -> Tensor:
    """[T, D_in] -> [T, D_out] of one layer, for few rows."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    y = linear_few_rows(x, layer.unpack(layer.weight, x.dtype), bias)
    low = linear_few_rows(x, layer.a.to(x.dtype))
    return y.add_(linear_few_rows(low, layer.b.to(x.dtype)), alpha=layer.scale)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scales: list[float], unpacks: list[Unpack], *tensors: Tensor) -> tuple[Tensor, ...]:
        flat, layers, outs = x.flatten(0, -2), _by_layer(tensors), []  # [T, D_in]
        low = flat @ torch.cat([layer.a for layer in layers]).to(x.dtype).T  # [T, sum of R]
        for layer, scale, unpack, own_low in zip(layers, scales, unpacks, _split(low, layers)):
            w = unpack(layer.weight, x.dtype)
            y = torch.mm(flat, w.T) if layer.bias is None else torch.addmm(layer.bias.to(x.dtype), flat, w.T)
            outs.append(y.addmm_(own_low, layer.b.to(x.dtype).T, alpha=scale).unflatten(0, x.shape[:-1]))
        ctx.scales, ctx.unpacks = scales, unpacks
        ctx.save_for_backward(x, low, *tensors)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, low, *tensors = ctx.saved_tensors
        layers, gs, flat = _by_layer(tensors), [g.flatten(0, -2) for g in grads], x.flatten(0, -2)
        low_g = torch.cat(
            [(g @ layer.b.to(g.dtype)).mul_(scale) for g, layer, scale in zip(gs, layers, ctx.scales)], 1
        )  # G
        dx = None
        if ctx.needs_input_grad[0]:
            dx = low_g @ torch.cat([layer.a for layer in layers]).to(x.dtype)
            for g, layer, unpack in zip(gs, layers, ctx.unpacks):
                dx.addmm_(g, unpack(layer.weight, g.dtype))
            dx = dx.unflatten(0, x.shape[:-1])
        gradients, das = [], (low_g.T @ flat).split([len(layer.a) for layer in layers])
        for i, (layer, own_low) in enumerate(zip(layers, _split(low, layers))):
            needs_bias = ctx.needs_input_grad[NUM_OPTIONS + NUM_TENSORS * i + 1]
            dbias = gs[i].sum(0).to(layer.bias.dtype) if needs_bias and layer.bias is not None else None
            db = (gs[i].T @ own_low).mul_(ctx.scales[i]).to(layer.b.dtype)
            gradients += [None, dbias, das[i].to(layer.a.dtype), db]
        return dx, None, None, *gradients


def _by_layer(tensors: Sequence[Tensor]) -> list[_Tensors]:
    return [_Tensors(*tensors[start : start + NUM_TENSORS]) for start in range(0, len(tensors), NUM_TENSORS)]


def _split(low: Tensor, layers: Sequence[_Tensors]) -> tuple[Tensor, ...]:
    """[T, sum of R] -> each layer's [T, R]."""
    return low.split([len(layer.a) for layer in layers], 1)
