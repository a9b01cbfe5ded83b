"""Attention by the compiled kernel (kernels/attention.cpp): the same as by matrix products, two to three times as fast.

The kernel gets rows as index lists: which tokens are a row's keys, which queries the row has, and at which of its keys each
query is. Rows that share tokens, and rows of which only some tokens have queries, are therefore no special cases.
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
from weitiao.model.layers.attention_cpu import QueryBlock, query_blocks, query_blocks_at


class _Matrix(ctypes.Structure):
    """`Matrix` of attention.cpp: bf16 [rows, heads, width]; strides in numbers."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_long), ("head", ctypes.c_long)]


class _Job(ctypes.Structure):
    """`Attention` of attention.cpp, field by field in the same order."""

    _fields_ = [
        *((x, _Matrix) for x in ("q", "k", "v", "y", "g", "dq")),
        *((x, ctypes.c_void_p) for x in ("dk", "dv")),
        *((x, ctypes.c_long) for x in ("heads", "groups", "width", "value_width", "causal", "window")),
        ("scale", ctypes.c_float),
        ("rows", ctypes.c_long),
        *((x, ctypes.c_void_p) for x in ("query_bounds", "key_bounds", "key_tokens", "query_positions")),
    ]


@dataclass(frozen=True)
class RaggedIndex:
    """Rows of unequal length as the kernel reads them; all int32."""

    query_bounds: Tensor  # [B + 1] where each row's queries begin
    key_bounds: Tensor  # [B + 1] where each row's keys begin in `key_tokens`
    key_tokens: Tensor  # [.] the tokens that are the keys of each row
    query_positions: Tensor  # [N] at which of its row's keys each query is


_cache: deque[tuple[weakref.ref, Tensor | None, RaggedIndex]] = deque(maxlen=4)


def ragged_index(batch: Batch, query_tokens: Tensor | None) -> RaggedIndex:
    """The index of a batch, or of one where only the tokens at `query_tokens` [N] have queries; all layers share it."""
    for cached_batch, cached_tokens, index in list(_cache):
        if cached_batch() is batch and cached_tokens is query_tokens:
            return index
    blocks = query_blocks(batch, 1) if query_tokens is None else query_blocks_at(batch, query_tokens)
    index = _make_index([row for block in blocks for row in block.single_rows()])
    _cache.append((weakref.ref(batch), query_tokens, index))
    return index


def _make_index(rows: Sequence[QueryBlock]) -> RaggedIndex:
    tokens = [torch.arange(start, start + length) for row in rows for start, length in row.keys]
    positions = [
        torch.arange(row.num_keys - row.num_queries, row.num_keys) if row.key_positions is None else row.key_positions
        for row in rows
    ]

    def bounds(sizes: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)

    query_bounds, key_bounds = bounds([row.num_queries for row in rows]), bounds([row.num_keys for row in rows])
    return RaggedIndex(query_bounds, key_bounds, torch.cat(tokens).int(), torch.cat(positions).int())


Options = tuple[float, bool, int | None]
"""(scale, causal, window)."""


def attend_compiled(q: Tensor, k: Tensor, v: Tensor, index: RaggedIndex, options: Options, kernels: Library) -> Tensor:
    """The same as `attend_by_matmul`, for bf16 tensors."""
    return _CompiledAttention.apply(q, k, v, index, options, kernels)


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, index: RaggedIndex, options: Options, kernels: Library) -> Tensor:
        q, k, v = (_aligned(x) for x in (q, k, v))
        ctx.save_for_backward(q, k, v)
        ctx.index, ctx.options, ctx.kernels = index, options, kernels
        y = q.new_empty(*q.shape[:2], v.shape[-1])
        kernels("attend", _job(q, k, v, index, options, y=_matrix(y)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        g, dq = _aligned(grads[0]), torch.empty(q.shape, dtype=q.dtype)
        dk, dv = (torch.zeros(x.shape) for x in (k, v))  # fp32, because several rows may add to the same key
        gradients = {"g": _matrix(g), "dq": _matrix(dq), "dk": dk.data_ptr(), "dv": dv.data_ptr()}
        ctx.kernels("attend_backward", _job(q, k, v, ctx.index, ctx.options, **gradients))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _job(q: Tensor, k: Tensor, v: Tensor, index: RaggedIndex, options: Options, **outputs: Any) -> _Job:
    scale, causal, window = options
    sizes = {"heads": q.shape[1], "groups": k.shape[1], "width": q.shape[2], "value_width": v.shape[2]}
    pointers = {
        name: getattr(index, name).data_ptr() for name in ("query_bounds", "key_bounds", "key_tokens", "query_positions")
    }
    return _Job(
        q=_matrix(q), k=_matrix(k), v=_matrix(v), **sizes, **pointers, **outputs,
        causal=causal, window=window or 0, scale=scale, rows=len(index.query_bounds) - 1,
    )  # fmt: skip


def _matrix(x: Tensor) -> _Matrix:
    return _Matrix(x.data_ptr(), x.stride(0), x.stride(1))


def _aligned(x: Tensor) -> Tensor:
    """x, or a copy, with the numbers of a head next to each other and even strides: the kernel reads them in pairs."""
    return x if x.stride(-1) == 1 and not (x.stride(0) % 2 or x.stride(1) % 2) else x.contiguous()
