"""Attention in which segments never attend to each other.

    rows end to end      a a a b b         one call per group of adjacent rows of equal length (CPU), or one
    attention pattern    a . . . .         varlen flash call for all rows (GPU, half precision): no mask is
                         a a . . .         ever built, and no token attends to another row
                         a a a . .
                         . . . b .
                         . . . b b

`segments(batch)` enables it for any transformers model: every family calls its attention through one table
(ALL_ATTENTION_FUNCTIONS), and ours is registered there as "weitiao". Outside `segments`, the same name is plain SDPA, so
generation with a cache works as usual.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from weitiao.core.batch import Batch
from weitiao.core.shared_prefix import PrefixSharedBatch
from weitiao.model.kernels.library import kernels_for
from weitiao.model.layers.attention_cached import CachedBatch, attend_cached
from weitiao.model.layers.attention_compiled import attend_compiled, ragged_index
from weitiao.model.layers.attention_cpu import attend_by_matmul, query_blocks, query_blocks_at
from weitiao.model.layers.dropout import apply_dropout
from weitiao.model.layers.shape_trace import Attention, current_trace

NAME = "weitiao"
_packed: ContextVar[Batch | None] = ContextVar("packed", default=None)


@contextmanager
def segments(batch: Batch) -> Iterator[None]:
    """Inside, the model's attention stays within the segments of this batch."""
    token = _packed.set(batch)
    try:
        yield
    finally:
        _packed.reset(token)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    query_tokens: Tensor | None = None,
) -> Tensor:
    """Attention within each segment.

    Args:
        q: [T, H, d]. k, v: [T, H_kv, d] with H a multiple of H_kv. With shared prefixes, [U, ...].
        scale: factor on the scores; default 1 / sqrt(d).
        window: a token attends to at most this many tokens back (and ahead, if not causal), itself included.
        softcap: cap * tanh(scores / cap) (Gemma 2).
        dropout: fraction of the attention weights that is dropped (BERT, while it trains).
        query_tokens: [N] ascending: only these tokens have queries, and q is [N, H, d].

    Returns:
        [T, H, d], or [N, H, d].
    """
    if isinstance(batch, CachedBatch):
        return attend_cached(q, k, v, batch, scale, window, softcap)
    has_window = window is not None and window < max(batch.lengths)
    # in fp32 and without a window torch's own attention is as fast, and with AVX2 faster
    own_is_faster = q.dtype == torch.bfloat16 or has_window
    trace = current_trace()
    if trace is not None and softcap is None and (trace.device_type == "cuda" or query_tokens is not None):
        return Attention.apply(q, k, v, kernels_for(q, k, v) is not None)
    if own_is_faster and q.device.type == "cpu" and softcap is None and not dropout:
        factor = float(q.shape[-1]) ** -0.5 if scale is None else scale
        if (kernels := kernels_for(q, k, v)) is not None:
            if trace is not None:
                return Attention.apply(q, k, v, True)
            return attend_compiled(q, k, v, ragged_index(batch, query_tokens), (factor, causal, window), kernels)
        blocks = query_blocks(batch, q.shape[1]) if query_tokens is None else query_blocks_at(batch, query_tokens)
        return attend_by_matmul(q, k, v, blocks, factor, causal, window)
    options = (scale, causal, window, softcap, dropout)
    if isinstance(batch, PrefixSharedBatch):
        k, v = batch.expand(k), batch.expand(v)
        if query_tokens is None:
            return batch.compact(_attend(batch.expand(q), k, v, batch, *options))
        query_tokens = batch.first_position[query_tokens]
    if query_tokens is None:
        return _attend(q, k, v, batch, *options)
    return _attend_at(query_tokens, q, k, v, batch, *options)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    scale: float | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention where every token has a query."""
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    is_plain = softcap is None and not dropout and q.shape[-1] == v.shape[-1]
    if q.is_cuda and is_half and is_plain and _varlen_attention() is not None:
        return _varlen(q, k, v, batch, scale, causal, window)
    outs = []
    for start, count, length in batch.groups:
        rows = slice(start, start + count * length)
        qs, ks, vs = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))  # [n, H, t, d]
        if softcap is not None or (window is not None and length > window) or (dropout and not q.is_cuda):
            out = _manual(qs, ks, vs, scale, causal, window, softcap, dropout)
        else:
            gqa = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(qs, ks, vs, None, dropout, causal, scale=scale, enable_gqa=gqa)
        outs.append(out.transpose(1, 2).flatten(0, 1))  # [n t, H, d]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attend_at(query_tokens: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, *options: Any) -> Tensor:
    """Attention where only some tokens have queries."""
    if q.is_cuda:
        return _attend_at_cuda(query_tokens, q, k, v, batch, *options)
    scale, causal, window, softcap, dropout = options
    edges, outs = torch.searchsorted(query_tokens, torch.tensor(batch.bounds)).tolist(), []
    for start, stop, i, j in zip(batch.bounds, batch.bounds[1:], edges, edges[1:]):
        if i == j:
            continue
        qs = q[i:j].transpose(0, 1)[None]  # [1, H, n, d]
        ks, vs = (x[start:stop].transpose(0, 1)[None] for x in (k, v))  # [1, H_kv, t, d]
        positions = query_tokens[i:j] - start
        if softcap is not None or window is not None or dropout:
            out = _manual(qs, ks, vs, scale, causal, window, softcap, dropout, positions)
        else:
            visible = torch.arange(stop - start) <= positions[:, None] if causal else None  # [n, t]
            gqa = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(qs, ks, vs, visible, dropout, scale=scale, enable_gqa=gqa)
        outs.append(out[0].transpose(0, 1))  # [n, H, d]
    return torch.cat(outs)


def _attend_at_cuda(query_tokens: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, *options: Any) -> Tensor:
    """The same on a GPU: every token has a query (zeros for the others), and only the requested outputs are returned.

    To run only the given queries, the CPU would have to wait for the GPU to count those of each segment. No token may be
    given twice.
    """
    all_queries = q.new_zeros(len(k), *q.shape[1:]).index_copy(0, query_tokens, q)
    return _attend(all_queries, k, v, batch, *options)[query_tokens]


@cache
def _varlen_attention() -> Callable | None:
    """torch's varlen flash attention; None if this torch has none with the arguments used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    required = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if required <= set(inspect.signature(varlen_attn).parameters) else None


def _varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch, scale: float | None, causal: bool, window: int | None) -> Tensor:
    varlen_attn = _varlen_attention()
    assert varlen_attn is not None
    bounds = torch.tensor(batch.bounds, dtype=torch.int32, device=q.device)
    max_length = max(batch.lengths)
    back = (window - 1) if window else -1  # the window counts the token itself; -1: no limit
    window_size = (back, 0 if causal else back)
    gqa = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, bounds, bounds, max_length, max_length, scale=scale, window_size=window_size, enable_gqa=gqa)
    return out if isinstance(out, Tensor) else out[0]


def _manual(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout: float,
    query_positions: Tensor | None = None,
) -> Tensor:
    """Attention where SDPA cannot do it, or is slow. [n, H, t, d] each.

    Args:
        query_positions: the positions of q's tokens where q has only some; None: q has all.
    """
    key_positions = torch.arange(k.shape[2], device=q.device)
    distance = (key_positions if query_positions is None else query_positions)[:, None] - key_positions[None, :]
    hidden = (distance < 0) if causal else None  # the key is ahead of the query
    if window is not None:
        hidden = (distance.abs() >= window) if hidden is None else hidden | (distance >= window)
    return _textbook(q, k, v, hidden, scale, softcap, dropout)


def _textbook(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor | None,
    scale: float | None,
    softcap: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k') v with a softcap on the scores.

    Args:
        q, k, v: [n, H, t, d].
        hidden: what is masked, [t of q, t of k], or with more dimensions before them.
    """
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = ((q * (scale if scale is not None else q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return apply_dropout(scores.softmax(-1).to(v.dtype), dropout) @ v


def _attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The function that transformers calls: q [1, H, T, d] -> [1, T, H, d], and no attention weights."""
    batch = _packed.get()
    if batch is None and options.get("softcap") is not None:
        return _softcapped(query, key, value, attention_mask, options["softcap"], options.get("scaling")), None
    if batch is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window, softcap, dropout = options.get("sliding_window"), options.get("softcap"), options.get("dropout", 0.0)
    return attend(q, k, v, batch, options.get("scaling"), causal, window, softcap, dropout)[None], None


def _softcapped(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, softcap: float, scale: float | None) -> Tensor:
    """Attention outside of `segments` with Gemma 2's softcap, which SDPA lacks: [B, H, t, d] -> [B, t, H, d]."""
    if visible is None:
        num_queries, num_keys = q.shape[2], k.shape[2]  # with a cache there are more keys than queries
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
    return _textbook(q, k, v, ~visible, scale, softcap).transpose(1, 2)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _packed.get() is not None else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, _attention_forward)
AttentionMaskInterface.register(NAME, _mask)
