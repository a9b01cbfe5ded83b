"""Attention on a CPU by matrix products: in bf16 three times as fast as torch's own where rows have some hundred tokens.

    of each row, and of each block of its queries [n, d] with the keys [t, d] that they may see:
    forward     S = scale q k'       P = softmax(S)    y = P v           [K, r n, t]: K heads of k, r of q for each
    backward    S and P once more    dP = g v'         dS = P (dP - rowsum(P dP))
                                     dq = dS k         dk = dS' q        dv = P' g

torch's own (Dao et al. 2022, arXiv 2205.14135) goes in tiles of 32 keys, for rows of thousands; its backward pass in bf16
runs at a thirtieth of what large products reach. Here nothing [t, t] is kept either; a block has at most BLOCK queries, so
that long rows take little room, and most of what lies above the diagonal is not computed. Scores are in fp32: what a
processor multiplies in bf16 it adds up in fp32, and it is asked for that sum.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.core.batch import Batch
from weitiao.core.shared_prefix import PrefixSharedBatch

BLOCK = 256  # queries of a row
ROOM = 1 << 19  # scores at once, about: what stays in a core's cache

Range = tuple[int, int]
"""(where it starts, how many)."""


@dataclass(frozen=True)
class QueryBlock:
    """Rows of one shape that stand next to one another; or one row whose keys stand in several places."""

    asks: Range
    """The queries of all rows."""
    keys: tuple[Range, ...]
    """The tokens of all rows."""
    rows: int = 1
    at: Tensor | None = None
    """Where in the row each query stands; None: they are its last tokens."""

    @property
    def queries(self) -> int:
        """Of each row."""
        return self.asks[1] // self.rows

    @property
    def length(self) -> int:
        """Tokens of each row."""
        return sum(many for _, many in self.keys) // self.rows

    def apart(self) -> list["QueryBlock"]:
        """Each row by itself."""
        if self.rows == 1:
            return [self]
        (first, n), (start, t) = (self.asks[0], self.queries), (self.keys[0][0], self.length)
        return [QueryBlock((first + i * n, n), ((start + i * t, t),)) for i in range(self.rows)]


def pieces_of(batch: Batch, heads: int) -> list[QueryBlock]:
    """Of equally long neighbours as many as have room; of rows that share tokens, each row alone."""
    if isinstance(batch, PrefixSharedBatch):
        return [QueryBlock(own, keys) for own, keys in zip(batch.own_ranges, batch.row_ranges) if own[1]]
    found = []
    for start, count, length in batch.groups:
        most = max(1, ROOM // (heads * length * min(length, BLOCK)))
        for first in range(0, count, most):
            rows = min(most, count - first)
            where = (start + first * length, rows * length)
            found.append(QueryBlock(where, (where,), rows))
    return found


def pieces_at(batch: Batch, rows: Tensor) -> list[QueryBlock]:
    """Where only the tokens at `rows` [N] ask, ascending."""
    places = batch.first_position[rows] if isinstance(batch, PrefixSharedBatch) else rows
    keys = (
        batch.row_ranges if isinstance(batch, PrefixSharedBatch) else [((a, n),) for a, n in zip(batch.bounds, batch.lengths)]
    )
    cuts = torch.searchsorted(places, torch.tensor(batch.bounds)).tolist()
    return [
        QueryBlock((i, j - i), row, at=places[i:j] - a) for a, row, i, j in zip(batch.bounds, keys, cuts, cuts[1:]) if i < j
    ]


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[QueryBlock], scale: float, causal: bool, window: int | None
) -> Tensor:
    """Attention within each row.

    Args:
        q: [U, H, d], or [N, H, d]. k: [U, K, d]. v: [U, K, d_v]; H a multiple of K.
        pieces: each query is in one of them.
        window: a token sees at most this many tokens back (and ahead, where not causal), itself included.

    Returns:
        [U, H, d_v], or [N, H, d_v]
    """
    return _ByProducts.apply(q, k, v, pieces, scale, causal, window)  # pyright: ignore[reportReturnType]


class _ByProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[QueryBlock], scale: float, causal: bool, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.pieces, ctx.scale, ctx.causal, ctx.window = pieces, scale, causal, window
        heads, out = k.shape[1], q.new_empty(*q.shape[:2], v.shape[-1])
        with _fp32_sums(q.dtype), torch.autocast("cpu", enabled=False):
            for piece in pieces:
                asked, y = (_heads_first(_of(x, piece.asks), piece.rows, heads) for x in (q, out))
                keys, values = (_heads_first(_put_together(x, piece.keys), piece.rows, heads) for x in (k, v))
                for part, seen in _blocks(piece, q.shape[1], causal, window):
                    p = _weights(asked[..., part, :], keys[:, :, 0, seen], scale, _mask(piece, part, seen, causal, window))
                    y[..., part, :] = (p.to(v.dtype) @ values[:, :, 0, seen]).unflatten(2, (y.shape[2], -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        q, k, v = ctx.saved_tensors
        pieces, scale, causal, window = ctx.pieces, ctx.scale, ctx.causal, ctx.window
        heads, dq = k.shape[1], torch.empty_like(q)
        dk, dv = (torch.zeros(x.shape, dtype=_wide(x)) for x in (k, v))  # several rows and blocks may add to a key
        with _fp32_sums(q.dtype), torch.autocast("cpu", enabled=False):
            for piece in pieces:
                asked, given, dasked = (_heads_first(_of(x, piece.asks), piece.rows, heads) for x in (q, g, dq))
                keys, values = (_heads_first(_put_together(x, piece.keys), piece.rows, heads) for x in (k, v))
                for part, seen in _blocks(piece, q.shape[1], causal, window):
                    some, gs = asked[..., part, :].flatten(2, 3), given[..., part, :].flatten(2, 3)
                    ks, vs = keys[:, :, 0, seen], values[:, :, 0, seen]
                    p = _weights(asked[..., part, :], ks, scale, _mask(piece, part, seen, causal, window))
                    dp = gs.to(p.dtype) @ vs.to(p.dtype).transpose(-1, -2)
                    ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale).to(q.dtype)
                    dasked[..., part, :] = (ds @ ks).unflatten(2, (dasked.shape[2], -1))
                    _add(dk, piece, seen, ds.transpose(-1, -2) @ some)
                    _add(dv, piece, seen, p.to(g.dtype).transpose(-1, -2) @ gs)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """What scores and sums are made in."""
    return torch.promote_types(x.dtype, torch.float32)


def _of(x: Tensor, where: Range) -> Tensor:
    return x[where[0] : where[0] + where[1]]


def _put_together(x: Tensor, ranges: Sequence[Range]) -> Tensor:
    return _of(x, ranges[0]) if len(ranges) == 1 else torch.cat([_of(x, where) for where in ranges])


def _heads_first(x: Tensor, rows: int, heads: int) -> Tensor:
    """[rows n, heads r, d] -> [rows, heads, r, n, d], a view."""
    return x.unflatten(0, (rows, -1)).unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)


def _blocks(piece: QueryBlock, heads: int, causal: bool, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(some queries of each row, the keys of the row that one of them sees)."""
    queries, length = piece.queries, piece.length
    if not queries:
        return
    behind = length - queries
    many = math.ceil(queries / min(BLOCK, max(16, ROOM // (piece.rows * heads * length))))
    edges = [queries * i // many for i in range(many + 1)]
    for a, b in zip(edges, edges[1:]):
        if piece.at is not None:
            yield slice(a, b), slice(0, length)
            continue
        first = 0 if window is None else max(0, behind + a - window + 1)
        last = behind + b if causal else length if window is None else min(length, behind + b + window - 1)
        yield slice(a, b), slice(first, last)


def _mask(piece: QueryBlock, part: slice, seen: slice, causal: bool, window: int | None) -> Tensor | None:
    """[n, t] to be added to scores, or their last columns alone; None: all are seen."""
    if not causal and window is None:
        return None
    if piece.at is not None:
        return _hidden_from(piece.at[part], seen.stop, causal, window)
    many, at = part.stop - part.start, piece.length - piece.queries + part.start - seen.start
    if causal and (window is None or at + many <= window):
        return _hidden(BLOCK, BLOCK, 0, True, None)[:many, :many]
    return _hidden(many, seen.stop - seen.start, at, causal, window)


@lru_cache(maxsize=16)
def _hidden(queries: int, keys: int, at: int, causal: bool, window: int | None) -> Tensor:
    return _hidden_from(torch.arange(at, at + queries), keys, causal, window)


def _hidden_from(at: Tensor, keys: int, causal: bool, window: int | None) -> Tensor:
    """[n, keys]: -inf where a key is not seen by a query that stands at a key `at` [n]; else nought."""
    back = at[:, None] - torch.arange(keys)
    hidden = (back < 0) if causal else torch.zeros_like(back, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (back.abs() >= window)
    return torch.zeros(len(at), keys).masked_fill_(hidden, -math.inf)


def _weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """q [rows, K, r, n, d], k [rows, K, t, d] -> the softmax of the scores [rows, K, r n, t], wide."""
    n = q.shape[3]
    first = q.dtype == _wide(q) or math.frexp(scale)[0] == 0.5  # a power of two rounds nothing
    asks = q.flatten(2, 3).to(_wide(q))
    s = (asks * scale if first else asks) @ k.to(_wide(k)).transpose(-1, -2)
    if not first:
        s.mul_(scale)
    if mask is not None:
        s.unflatten(2, (-1, n))[..., -mask.shape[1] :].add_(mask)
    return s.softmax(-1)


def _add(total: Tensor, piece: QueryBlock, seen: slice, part: Tensor) -> None:
    """Gradients [rows, K, t, d] of some keys, to those of all tokens [U, K, d]."""
    if len(piece.keys) == 1:
        _heads_first(_of(total, piece.keys[0]), piece.rows, total.shape[1])[:, :, 0, seen] += part
        return
    part, at = part[0].transpose(0, 1), -seen.start  # [t, K, d]
    for start, many in piece.keys:
        a, b = max(at, 0), min(at + many, len(part))
        if a < b:
            total[start + a - at : start + b - at] += part[a:b]
        at += many


@contextmanager
def _fp32_sums(dtype: torch.dtype) -> Iterator[None]:
    """Inside, products of fp32 matrices whose numbers come from bf16 are made by the processor's bf16 instructions, which
    add up in fp32: nothing is rounded before."""
    products: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    was = products.fp32_precision
    if dtype == torch.bfloat16:
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = was
