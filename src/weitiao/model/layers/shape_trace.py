"""A trace of shapes: the model's own code runs on tensors without numbers, as it would on another device.

Whatever looks at a device or calls a compiled kernel asks here first. Attention's stand-in keeps what the real one keeps:
q, k, v, and where torch's flash attention runs, the output and the logarithms of its sums; never a matrix of scores.
Dao et al. 2022, "FlashAttention", arXiv 2205.14135, algorithm 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ShapeTrace:
    """Where the traced code would run."""

    device_type: str
    """cpu or cuda."""
    kernels: bool
    """By this project's compiled kernels."""


_trace: ContextVar[ShapeTrace | None] = ContextVar("trace", default=None)


@contextmanager
def tracing_shapes(trace: ShapeTrace) -> Iterator[None]:
    """Inside, layers allocate what they would allocate there, and compute nothing."""
    token = _trace.set(trace)
    try:
        yield
    finally:
        _trace.reset(token)


def current_trace() -> ShapeTrace | None:
    """The trace that is being made; None: the model really runs."""
    return _trace.get()


def device_type(x: Tensor) -> str:
    """The type of the device that x is on, or would be on."""
    trace = _trace.get()
    return x.device.type if trace is None else trace.device_type


def moved(module: M, device: torch.device) -> M:
    """The module on a device. One that is there stays as it is: modules of a trace cannot be moved."""
    return module if all(p.device == device for p in module.parameters()) else module.to(device)


class Attention(torch.autograd.Function):
    """q [N, H, d], k and v [T, H_kv, d] -> [N, H, d_v]."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, compiled: bool) -> Tensor:
        y = q.new_empty(*q.shape[:2], v.shape[-1])
        ctx.compiled = compiled
        if compiled:
            ctx.save_for_backward(q, k, v)
        else:
            ctx.save_for_backward(q, k, v, y, q.new_empty(q.shape[:2], dtype=torch.float32))
        return y

    @staticmethod
    def backward(ctx, *grads: Tensor):
        q, k, v, *_ = ctx.saved_tensors
        dq = torch.empty_like(q)
        if not ctx.compiled:
            return dq, torch.empty_like(k), torch.empty_like(v), None
        dk, dv = (torch.zeros(x.shape) for x in (k, v))  # fp32, as in attention_compiled.py
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


class KernelShapes:
    """Stands for the compiled kernels: callers allocate their outputs, which nobody fills."""

    reads_values = False

    def __call__(self, name: str, *arguments: Any) -> None:
        return
