"""Attention on a CPU by matrix products: in bf16 three times as fast as torch's own for rows of some hundred tokens.

    for each row, and each block of its queries [n, d] with the keys [t, d] that they may attend to:
    forward     S = scale q k'       P = softmax(S)    y = P v           [K, r n, t]: K key heads, r query heads for each
    backward    S and P again        dP = g v'         dS = P (dP - rowsum(P dP))
                                     dq = dS k         dk = dS' q        dv = P' g

torch's own kernel (Dao et al. 2022, arXiv 2205.14135) works in tiles of 32 keys, for rows of thousands of tokens; its
backward pass in bf16 reaches a thirtieth of the speed of large matrix products. This code does not store anything [t, t]
either: a block has at most BLOCK queries, so long rows need little memory, and most of the scores above the diagonal are
never computed. Scores are in fp32. A CPU adds up products of bf16 numbers in fp32, and `_fp32_sums` requests that sum.
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

BLOCK = 256  # queries of a row, at most
MAX_SCORES = 1 << 19  # at a time, about: what stays in a core's cache

Span = tuple[int, int]
"""(index of the first token, number of tokens)."""


@dataclass(frozen=True)
class QueryBlock:
    """Adjacent rows of the same length; or a single row, whose keys may be in several places (shared prefixes)."""

    queries: Span
    """Where the queries of all rows are."""
    keys: tuple[Span, ...]
    """Where the keys of all rows are; with more than one span there is a single row."""
    num_rows: int = 1
    key_positions: Tensor | None = None
    """At which of the row's keys each query is; None: the queries are the row's last tokens."""

    @property
    def num_queries(self) -> int:
        """Queries per row."""
        return self.queries[1] // self.num_rows

    @property
    def num_keys(self) -> int:
        """Keys per row."""
        return sum(length for _, length in self.keys) // self.num_rows

    def single_rows(self) -> list["QueryBlock"]:
        """One block per row."""
        if self.num_rows == 1:
            return [self]
        (first_query, n), (first_key, t) = (self.queries[0], self.num_queries), (self.keys[0][0], self.num_keys)
        return [QueryBlock((first_query + i * n, n), ((first_key + i * t, t),)) for i in range(self.num_rows)]


def query_blocks(batch: Batch, num_heads: int) -> list[QueryBlock]:
    """A batch's blocks: as many adjacent rows of equal length as MAX_SCORES allows; rows that share tokens one by one."""
    if isinstance(batch, PrefixSharedBatch):
        return [QueryBlock(own, keys) for own, keys in zip(batch.own_ranges, batch.row_ranges) if own[1]]
    blocks = []
    for start, count, length in batch.groups:
        max_rows = max(1, MAX_SCORES // (num_heads * length * min(length, BLOCK)))
        for first_row in range(0, count, max_rows):
            num_rows = min(max_rows, count - first_row)
            span = (start + first_row * length, num_rows * length)
            blocks.append(QueryBlock(span, (span,), num_rows))
    return blocks


def query_blocks_at(batch: Batch, query_tokens: Tensor) -> list[QueryBlock]:
    """The blocks of a batch in which only the tokens at `query_tokens` [N], ascending, have queries; one block per row."""
    if isinstance(batch, PrefixSharedBatch):
        tokens, keys = batch.first_position[query_tokens], batch.row_ranges
    else:
        tokens, keys = query_tokens, [((start, length),) for start, length in zip(batch.bounds, batch.lengths)]
    edges = torch.searchsorted(tokens, torch.tensor(batch.bounds)).tolist()
    return [
        QueryBlock((i, j - i), row_keys, key_positions=tokens[i:j] - start)
        for start, row_keys, i, j in zip(batch.bounds, keys, edges, edges[1:])
        if i < j
    ]


def attend_by_matmul(
    q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[QueryBlock], scale: float, causal: bool, window: int | None
) -> Tensor:
    """Attention within each row.

    Args:
        q: [U, H, d], or [N, H, d]. k: [U, K, d]. v: [U, K, d_v]; H a multiple of K.
        blocks: each query is in exactly one of them.
        window: a token attends to at most this many tokens back (and ahead, if not causal), itself included.

    Returns:
        [U, H, d_v], or [N, H, d_v]
    """
    return _MatmulAttention.apply(q, k, v, blocks, scale, causal, window)


class _MatmulAttention(torch.autograd.Function):
    """Saves q, k and v; the backward pass computes the scores again, block by block."""

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[QueryBlock], scale: float, causal: bool, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scale, ctx.causal, ctx.window = blocks, scale, causal, window
        num_kv_heads, out = k.shape[1], q.new_empty(*q.shape[:2], v.shape[-1])
        with _fp32_sums(q.dtype), torch.autocast("cpu", enabled=False):
            for block in blocks:
                # views of q and out, so writing to y fills `out`: [rows, K, r, n, d]
                qs, y = (_heads_first(_slice(x, block.queries), block.num_rows, num_kv_heads) for x in (q, out))
                ks, vs = (_heads_first(_gather(x, block.keys), block.num_rows, num_kv_heads)[:, :, 0] for x in (k, v))
                for part, visible in _tiles(block, q.shape[1], causal, window):
                    mask = _mask(block, part, visible, causal, window)
                    p = _weights(qs[..., part, :], ks[:, :, visible], scale, mask)
                    y[..., part, :] = (p.to(v.dtype) @ vs[:, :, visible]).unflatten(2, (y.shape[2], -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        q, k, v = ctx.saved_tensors
        blocks, scale, causal, window = ctx.blocks, ctx.scale, ctx.causal, ctx.window
        num_kv_heads, dq = k.shape[1], torch.empty_like(q)
        # each query is in one block, so dq is written once; a key may be in several rows and tiles, so dk and dv are sums
        dk, dv = (torch.zeros(x.shape, dtype=_sum_dtype(x)) for x in (k, v))
        with _fp32_sums(q.dtype), torch.autocast("cpu", enabled=False):
            for block in blocks:
                qs, gs, dqs = (_heads_first(_slice(x, block.queries), block.num_rows, num_kv_heads) for x in (q, g, dq))
                ks, vs = (_heads_first(_gather(x, block.keys), block.num_rows, num_kv_heads)[:, :, 0] for x in (k, v))
                for part, visible in _tiles(block, q.shape[1], causal, window):
                    # the r query heads of a key head are stacked: [rows, K, r n, d]
                    part_q, part_g = qs[..., part, :].flatten(2, 3), gs[..., part, :].flatten(2, 3)
                    visible_k, visible_v = ks[:, :, visible], vs[:, :, visible]
                    mask = _mask(block, part, visible, causal, window)
                    p = _weights(qs[..., part, :], visible_k, scale, mask)
                    dp = part_g.to(p.dtype) @ visible_v.to(p.dtype).transpose(-1, -2)
                    ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale).to(q.dtype)
                    dqs[..., part, :] = (ds @ visible_k).unflatten(2, (dqs.shape[2], -1))
                    _add(dk, block, visible, ds.transpose(-1, -2) @ part_q)
                    _add(dv, block, visible, p.to(g.dtype).transpose(-1, -2) @ part_g)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of scores and sums: fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def _slice(x: Tensor, span: Span) -> Tensor:
    """The tokens of a span, a view."""
    return x[span[0] : span[0] + span[1]]


def _gather(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The tokens of several spans in a row: a view of one span, a copy of several."""
    return _slice(x, spans[0]) if len(spans) == 1 else torch.cat([_slice(x, span) for span in spans])


def _heads_first(x: Tensor, num_rows: int, num_kv_heads: int) -> Tensor:
    """[rows n, heads r, d] -> [rows, heads, r, n, d], a view; r is 1 for keys and values."""
    return x.unflatten(0, (num_rows, -1)).unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)


def _tiles(block: QueryBlock, num_heads: int, causal: bool, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(some queries of each row, the keys of the row that at least one of them attends to).

    Tiles are as even as possible and have at most BLOCK queries; fewer (but at least 16) where more would exceed
    MAX_SCORES.
    """
    num_queries, num_keys = block.num_queries, block.num_keys
    if not num_queries:
        return
    before = num_keys - num_queries  # keys before the first query's own
    max_queries = min(BLOCK, max(16, MAX_SCORES // (block.num_rows * num_heads * num_keys)))
    num_tiles = math.ceil(num_queries / max_queries)
    edges = [num_queries * i // num_tiles for i in range(num_tiles + 1)]
    for start, stop in zip(edges, edges[1:]):
        if block.key_positions is not None:  # the queries are anywhere in the row
            yield slice(start, stop), slice(0, num_keys)
            continue
        first = 0 if window is None else max(0, before + start - window + 1)
        ahead = 0 if causal else num_keys if window is None else window - 1
        last = min(num_keys, before + stop + ahead)
        yield slice(start, stop), slice(first, last)


def _mask(block: QueryBlock, part: slice, visible: slice, causal: bool, window: int | None) -> Tensor | None:
    """What is added to the scores of a tile: [n, t], or [n, n] for their last columns only; None: nothing is masked."""
    if not causal and window is None:
        return None
    if block.key_positions is not None:
        return _mask_at(block.key_positions[part], visible.stop, causal, window)
    n = part.stop - part.start
    position = block.num_keys - block.num_queries + part.start - visible.start  # of the first query, among the keys
    if causal and (window is None or position + n <= window):
        # Every query attends to all keys before the tile, and only the triangle of the tile's own keys is masked. All tiles
        # share one triangle of the largest size, cut to theirs.
        return _cached_mask(BLOCK, BLOCK, 0, True, None)[:n, :n]
    return _cached_mask(n, visible.stop - visible.start, position, causal, window)


@lru_cache(maxsize=16)
def _cached_mask(num_queries: int, num_keys: int, position: int, causal: bool, window: int | None) -> Tensor:
    return _mask_at(torch.arange(position, position + num_queries), num_keys, causal, window)


def _mask_at(key_positions: Tensor, num_keys: int, causal: bool, window: int | None) -> Tensor:
    """[n, num_keys]: -inf where a key is hidden from a query at key position `key_positions` [n], else 0."""
    distance = key_positions[:, None] - torch.arange(num_keys)  # how far the key is behind the query
    hidden = (distance < 0) if causal else torch.zeros_like(distance, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (distance.abs() >= window)
    return torch.zeros(len(key_positions), num_keys).masked_fill_(hidden, -math.inf)


def _weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """q [rows, K, r, n, d], k [rows, K, t, d] -> the softmax of the scores, [rows, K, r n, t] in fp32."""
    n = q.shape[3]
    # It is cheaper to scale q than the scores. A power of two (frexp gives a mantissa of 0.5) only changes the exponent, so
    # bf16 inputs of `_fp32_sums` stay exact; any other scale would make them fp32 numbers that are rounded to bf16 again.
    scale_first = q.dtype == _sum_dtype(q) or math.frexp(scale)[0] == 0.5
    stacked = q.flatten(2, 3).to(_sum_dtype(q))
    scores = (stacked * scale if scale_first else stacked) @ k.to(_sum_dtype(k)).transpose(-1, -2)
    if not scale_first:
        scores.mul_(scale)
    if mask is not None:
        scores.unflatten(2, (-1, n))[..., -mask.shape[1] :].add_(mask)
    return scores.softmax(-1)


def _add(total: Tensor, block: QueryBlock, visible: slice, part: Tensor) -> None:
    """Add the gradients of a tile's keys, `part` [rows, K, t, d], to those of all tokens, `total` [U, K, d]."""
    if len(block.keys) == 1:
        _heads_first(_slice(total, block.keys[0]), block.num_rows, total.shape[1])[:, :, 0, visible] += part
        return
    # a single row whose keys are in several spans: add to each span the part of the tile that lies in it
    part, offset = part[0].transpose(0, 1), -visible.start  # [t, K, d]; where the span begins in `part`
    for start, length in block.keys:
        first, last = max(offset, 0), min(offset + length, len(part))
        if first < last:
            total[start + first - offset : start + last - offset] += part[first:last]
        offset += length


@contextmanager
def _fp32_sums(dtype: torch.dtype) -> Iterator[None]:
    """Inside, products of fp32 matrices that hold bf16 numbers use the CPU's bf16 instructions, which add up in fp32.

    A product of bf16 matrices would round its result to bf16. Converting the inputs to fp32 changes none of their numbers,
    so oneDNN may round them to bf16 again without loss, and the result stays in fp32.
    """
    mkldnn: Any = torch.backends.mkldnn
    matmul = mkldnn.matmul
    previous = matmul.fp32_precision
    if dtype == torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = previous
