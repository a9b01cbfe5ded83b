"""What is saved for the backward pass on a CPU: no rounded copies of weights, and nothing that is fast to compute again.

Autocast has weights in fp32 and products in bf16. Here its rounded copies of the weights are made twice and never stored:

    forward    y = x round(W)^T            saved for the backward pass: x, and W itself
    backward   dx = g round(W)             rounded again: the same numbers

Stored, the copies would take two bytes per trained weight, half as much as its gradient. (On a GPU autocast stores them.)
With compiled kernels, the products after norms and gates do not store their inputs either; they are computed again
(fused.py). That saves a third of all that a layer stores, for a fiftieth of its time, and the numbers are the same.

A saved tensor is recognized by the autograd node that produced it, and the node by its name in torch (COPY_NODE,
TRANSPOSE_NODE) or in fused.py (RECOMPUTE). A torch release that renames its nodes would only lose the savings, without an
error; tests/unit/model/test_saved_tensors.py fails with such a release.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from weitiao.model.kernels.library import enabled
from weitiao.model.layers.fused import RECOMPUTE
from weitiao.model.layers.shape_trace import device_type

COPY_NODE = "ToCopyBackward0"
"""torch's name of the node behind a copy in another dtype, as autocast makes of weights."""
TRANSPOSE_NODE = "TBackward0"
"""torch's name of the node behind W.T, as nn.Linear makes of its weight."""


@dataclass(frozen=True)
class CastOf:
    """Stands for the copy of a weight in a lower precision."""

    weight: Tensor
    dtype: torch.dtype
    transposed: bool
    version: int


@dataclass(frozen=True)
class Recompute:
    """Stands for the output of a node that can compute it again from its own saved tensors."""

    node: Any
    function: Callable[[Any], Tensor]


@dataclass(frozen=True)
class _Stored:
    """Any other tensor. With hooks, torch no longer checks that it was not changed in between, so this does."""

    tensor: Tensor
    version: int


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, weights stored in fp32 are used in `dtype`; models stored in it already run as they are."""
    weight = next(model.parameters())
    on_cpu, mixed = device_type(weight) == "cpu", weight.dtype != dtype
    save_less = on_cpu and (mixed or (dtype == torch.bfloat16 and enabled()))
    hooks = saved_tensors_hooks(_pack, _unpack) if save_less else nullcontext()
    with torch.autocast(weight.device.type, dtype, cache_enabled=not on_cpu) if mixed else nullcontext(), hooks:
        yield


def to_autocast_dtype(x: Tensor) -> Tensor:
    """x in the dtype that autocast would give it, for products that are not torch's own."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _pack(tensor: Tensor) -> _Stored | CastOf | Recompute:
    node, transposed = tensor.grad_fn, False
    if node is not None and getattr(node, "kernels", None) is not None and node.name() in RECOMPUTE:
        return Recompute(node, RECOMPUTE[node.name()])
    if node is not None and node.name() == TRANSPOSE_NODE:
        node, transposed = node.next_functions[0][0], True
    source = node.next_functions[0][0] if node is not None and node.name() == COPY_NODE else None
    weight = getattr(source, "variable", None)  # only the node of a leaf has it: a parameter was copied
    if weight is None:
        # detached, because a tensor that belongs to the graph would keep the graph alive that stores it
        return _Stored(tensor.detach(), tensor._version)
    return CastOf(weight, tensor.dtype, transposed, weight._version)


def _unpack(packed: _Stored | CastOf | Recompute) -> Tensor:
    if isinstance(packed, Recompute):
        return packed.function(packed.node)
    tensor = packed.tensor if isinstance(packed, _Stored) else packed.weight
    if tensor._version != packed.version:
        raise RuntimeError("a weight or an activation was changed between a forward pass and its backward pass")
    if isinstance(packed, _Stored):
        return packed.tensor
    copy = packed.weight.detach().to(packed.dtype)
    return copy.T if packed.transposed else copy
