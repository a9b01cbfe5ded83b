"""Attention by the compiled kernel (kernels/attention.cpp): the same as by products, two to three times as fast.

The kernel knows rows only as lists: which tokens are a row's keys, which queries ask them, and at which of the keys each
query stands. So rows that share tokens, and rows of which only some tokens ask, are nothing special to it.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.core.batch import Batch
from weitiao.model.kernels.library import Library
from weitiao.model.layers.attention_cpu import QueryBlock, pieces_at, pieces_of


class _Matrix(ctypes.Structure):
    """[rows, heads, width] of bf16; steps in numbers."""

    _fields_ = [("at", ctypes.c_void_p), ("row", ctypes.c_long), ("head", ctypes.c_long)]


class _Job(ctypes.Structure):
    _fields_ = [
        *((x, _Matrix) for x in ("q", "k", "v", "y", "g", "dq")),
        *((x, ctypes.c_void_p) for x in ("dk", "dv")),
        *((x, ctypes.c_long) for x in ("heads", "groups", "width", "value_width", "causal", "window")),
        ("scale", ctypes.c_float),
        ("pieces", ctypes.c_long),
        *((x, ctypes.c_void_p) for x in ("asks", "begins", "tokens", "position")),
    ]


@dataclass(frozen=True)
class RaggedIndex:
    """Rows as the kernel knows them; all int32."""

    asks: Tensor  # [B + 1] where each row's queries begin
    begins: Tensor  # [B + 1] where its keys begin in `tokens`
    tokens: Tensor  # [.] the keys of each row
    position: Tensor  # [N] at which of its row's keys each query stands


_laid: deque[tuple[weakref.ref, Tensor | None, RaggedIndex]] = deque(maxlen=4)


def lists_of(batch: Batch, rows: Tensor | None) -> RaggedIndex:
    """A batch's lists, or those where only the tokens at `rows` [N] ask; all layers share them."""
    for known, asking, lists in list(_laid):
        if known() is batch and asking is rows:
            return lists
    pieces = pieces_of(batch, 1) if rows is None else pieces_at(batch, rows)
    lists = _lists([row for piece in pieces for row in piece.apart()])
    _laid.append((weakref.ref(batch), rows, lists))
    return lists


def _lists(rows: Sequence[QueryBlock]) -> RaggedIndex:
    tokens = [torch.arange(a, a + n) for row in rows for a, n in row.keys]
    places = [torch.arange(row.length - row.queries, row.length) if row.at is None else row.at for row in rows]

    def bounds(sizes: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)

    asks, begins = bounds([row.queries for row in rows]), bounds([row.length for row in rows])
    return RaggedIndex(asks, begins, torch.cat(tokens).int(), torch.cat(places).int())


How = tuple[float, bool, int | None]
"""(scale, causal, window)."""


def attend_compiled(q: Tensor, k: Tensor, v: Tensor, lists: RaggedIndex, how: How, kernels: Library) -> Tensor:
    """What `attend_by_products` gives."""
    return _Compiled.apply(q, k, v, lists, how, kernels)  # pyright: ignore[reportReturnType]


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, lists: RaggedIndex, how: How, kernels: Library) -> Tensor:
        q, k, v = (_in_rows(x) for x in (q, k, v))
        ctx.save_for_backward(q, k, v)
        ctx.lists, ctx.how, ctx.kernels = lists, how, kernels
        y = q.new_empty(*q.shape[:2], v.shape[-1])
        kernels("attend", _job(q, k, v, lists, how, y=_matrix(y)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        g, dq = _in_rows(grads[0]), torch.empty(q.shape, dtype=q.dtype)
        dk, dv = (torch.zeros(x.shape) for x in (k, v))
        made = {"g": _matrix(g), "dq": _matrix(dq), "dk": dk.data_ptr(), "dv": dv.data_ptr()}
        ctx.kernels("attend_back", _job(q, k, v, ctx.lists, ctx.how, **made))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _job(q: Tensor, k: Tensor, v: Tensor, lists: RaggedIndex, how: How, **more: Any) -> _Job:
    scale, causal, window = how
    sizes = {"heads": q.shape[1], "groups": k.shape[1], "width": q.shape[2], "value_width": v.shape[2]}
    where = {name: getattr(lists, name).data_ptr() for name in ("asks", "begins", "tokens", "position")}
    return _Job(
        q=_matrix(q), k=_matrix(k), v=_matrix(v), **sizes, **where, **more,
        causal=causal, window=window or 0, scale=scale, pieces=len(lists.asks) - 1,
    )  # fmt: skip


def _matrix(x: Tensor) -> _Matrix:
    return _Matrix(x.data_ptr(), x.stride(0), x.stride(1))


def _in_rows(x: Tensor) -> Tensor:
    """With the numbers of a head side by side, and steps that pairs of them can be counted in."""
    return x if x.stride(-1) == 1 and not (x.stride(0) % 2 or x.stride(1) % 2) else x.contiguous()
