"""What is kept for the backward pass, on a CPU: no rounded copies of weights, and nothing that is made again quickly.

Weights in fp32, products in bf16 is autocast; its rounded copies of the weights are made twice here and kept by nobody:

    forward    y = x round(W)^T            kept for the backward pass: x, and W itself
    backward   dx = g round(W)             rounded once more: the same numbers

Kept, the copies would take two bytes a trained weight: as much as half its gradient. (On a GPU autocast keeps them.)
What norms and gates give is not kept by the products behind them either where compiled kernels make it again (fused.py):
a third of all that a layer keeps, for a fiftieth of its time, and the same numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from weitiao.model.kernels.library import in_use
from weitiao.model.layers.fused import AGAIN


@dataclass(frozen=True)
class CastOf:
    """Stands for the copy of a weight in a lower precision."""

    weight: Tensor
    dtype: torch.dtype
    turned: bool
    version: int


@dataclass(frozen=True)
class Recompute:
    """Stands for what a node gave, which makes it again from what it keeps itself."""

    node: Any
    make: Callable[[Any], Tensor]


@dataclass(frozen=True)
class _Kept:
    """Anything else, as it is: with hooks it is ours to see that nobody changes it."""

    tensor: Tensor
    version: int


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, weights kept in fp32 are computed with in `dtype`; those stored in it already need nothing."""
    where = next(model.parameters())
    cpu, mixed = where.device.type == "cpu", where.dtype != dtype
    lean = cpu and (mixed or (dtype == torch.bfloat16 and in_use()))
    hooks = saved_tensors_hooks(_pack, _unpack) if lean else nullcontext()
    with torch.autocast(where.device.type, dtype, cache_enabled=not cpu) if mixed else nullcontext(), hooks:
        yield


def in_autocast(x: Tensor) -> Tensor:
    """x as autocast would have it, for products that are not torch's own."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _pack(kept: Tensor) -> _Kept | CastOf | Recompute:
    made, turned = kept.grad_fn, False
    if made is not None and getattr(made, "kernels", None) is not None and made.name() in AGAIN:
        return Recompute(made, AGAIN[made.name()])
    if made is not None and made.name() == "TBackward0":
        made, turned = made.next_functions[0][0], True
    copied = made.next_functions[0][0] if made is not None and made.name() == "ToCopyBackward0" else None
    weight = getattr(copied, "variable", None)  # there where a parameter was copied
    if weight is None:
        return _Kept(kept.detach(), kept._version)  # not the tensor itself: it may hold the graph that holds it
    return CastOf(weight, kept.dtype, turned, weight._version)


def _unpack(kept: _Kept | CastOf | Recompute) -> Tensor:
    if isinstance(kept, Recompute):
        return kept.make(kept.node)
    there = kept.tensor if isinstance(kept, _Kept) else kept.weight
    if there._version != kept.version:
        raise RuntimeError("a weight or an activation was changed between a forward pass and its backward pass")
    if isinstance(kept, _Kept):
        return kept.tensor
    copy = kept.weight.detach().to(kept.dtype)
    return copy.T if kept.turned else copy
