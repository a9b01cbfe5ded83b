"""Attention in which segments never see each other.

    rows end to end      a a a b b         one call a group of equally long neighbours (CPU), or one
    who sees whom        a . . . .         varlen flash call for all (GPU, half precision): no mask is
                         a a . . .         ever built, and no token looks into another row
                         a a a . .
                         . . . b .
                         . . . b b

`segments(batch)` switches it on for any transformers model: every family calls its attention through one table
(ALL_ATTENTION_FUNCTIONS), and ours stands in it under the name "weitiao". Outside `segments`, the same name is plain
SDPA, so that generation with a cache goes its usual way.
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
from weitiao.model.kernels.library import usable
from weitiao.model.layers.attention_compiled import attend_compiled, lists_of
from weitiao.model.layers.attention_cpu import attend_by_products, pieces_at, pieces_of
from weitiao.model.layers.dropout import drop

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
    rows: Tensor | None = None,
) -> Tensor:
    """Attention within each segment.

    Args:
        q: [T, H, d]. k, v: [T, H_kv, d] with H a multiple of H_kv. Of a merged batch, [U, ...].
        scale: on the scores; default 1 / sqrt(d).
        window: a token sees at most this many tokens back (and ahead, where not causal), itself included.
        softcap: cap * tanh(scores / cap) (Gemma 2).
        dropout: share of the attention weights that is dropped (BERT, while it trains).
        rows: [N] ascending: only these tokens ask, and q is [N, H, d].

    Returns:
        [T, H, d], or [N, H, d].
    """
    windowed = window is not None and window < max(batch.lengths)
    wanted = q.dtype == torch.bfloat16 or windowed  # in fp32 and without a window torch's own is as fast, on AVX2 faster
    if wanted and q.device.type == "cpu" and softcap is None and not dropout:
        by = float(q.shape[-1]) ** -0.5 if scale is None else scale
        if (kernels := usable(q, k, v)) is not None:
            return attend_compiled(q, k, v, lists_of(batch, rows), (by, causal, window), kernels)
        pieces = pieces_of(batch, q.shape[1]) if rows is None else pieces_at(batch, rows)
        return attend_by_products(q, k, v, pieces, by, causal, window)
    how = (scale, causal, window, softcap, dropout)
    if isinstance(batch, PrefixSharedBatch):
        k, v = batch.expand(k), batch.expand(v)
        if rows is None:
            return batch.compact(_attend(batch.expand(q), k, v, batch, *how))
        rows = batch.first_position[rows]
    return _attend(q, k, v, batch, *how) if rows is None else _attend_at(rows, q, k, v, batch, *how)


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
    """Where every token asks."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    plain = softcap is None and not dropout and q.shape[-1] == v.shape[-1]
    if q.is_cuda and half and plain and _varlen_attention() is not None:
        return _varlen(q, k, v, batch, scale, causal, window)
    parts = []
    for start, count, length in batch.groups:
        cut = slice(start, start + count * length)
        qs, ks, vs = (x[cut].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))  # [n, H, t, d]
        if softcap is not None or (window is not None and length > window) or (dropout and not q.is_cuda):
            out = _by_hand(qs, ks, vs, scale, causal, window, softcap, dropout)
        else:
            gqa = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(qs, ks, vs, None, dropout, causal, scale=scale, enable_gqa=gqa)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [n t, H, d]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_at(rows: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, *how: Any) -> Tensor:
    """Where only some tokens ask."""
    if q.is_cuda:
        return _attend_in_place(rows, q, k, v, batch, *how)
    scale, causal, window, softcap, dropout = how
    cuts, parts = torch.searchsorted(rows, torch.tensor(batch.bounds)).tolist(), []
    for a, b, i, j in zip(batch.bounds, batch.bounds[1:], cuts, cuts[1:]):
        if i == j:
            continue
        qs, ks, vs = (x[cut].transpose(0, 1)[None] for x, cut in ((q, slice(i, j)), (k, slice(a, b)), (v, slice(a, b))))
        at = rows[i:j] - a
        if softcap is not None or window is not None or dropout:
            out = _by_hand(qs, ks, vs, scale, causal, window, softcap, dropout, at)
        else:
            seen = torch.arange(b - a) <= at[:, None] if causal else None  # [n, t]
            gqa = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(qs, ks, vs, seen, dropout, scale=scale, enable_gqa=gqa)
        parts.append(out[0].transpose(0, 1))  # [n, H, d]
    return torch.cat(parts)


def _attend_in_place(rows: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, *how: Any) -> Tensor:
    """The same on a GPU: all tokens ask, rather than wait for how many of each segment do. No row may stand twice."""
    every = q.new_zeros(len(k), *q.shape[1:]).index_copy(0, rows, q)
    return _attend(every, k, v, batch, *how)[rows]


@cache
def _varlen_attention() -> Callable | None:
    """torch's varlen flash attention, if this torch has it in the form we call."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    wanted = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if wanted <= set(inspect.signature(varlen_attn).parameters) else None


def _varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch, scale: float | None, causal: bool, window: int | None):
    bounds = torch.tensor(batch.bounds, dtype=torch.int32, device=q.device)
    longest = max(batch.lengths)
    back = (window - 1) if window else -1
    reach = (back, 0 if causal else back)
    out = _varlen_attention()(  # pyright: ignore[reportOptionalCall]
        q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=reach, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out if isinstance(out, Tensor) else out[0]


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    window: int | None,
    cap: float | None,
    dropout: float,
    asking: Tensor | None = None,
) -> Tensor:
    """Where SDPA cannot do it, or does it slowly. [n, H, t, d] each; q may be of those tokens alone that are `asking`."""
    at = torch.arange(k.shape[2], device=q.device)
    back = (at if asking is None else asking)[:, None] - at[None, :]  # how far behind the key lies
    hidden = (back < 0) if causal else None
    if window is not None:
        hidden = (back.abs() >= window) if hidden is None else hidden | (back >= window)
    return _textbook(q, k, v, hidden, scale, cap, dropout)


def _textbook(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float | None, cap: float | None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k') v with a softcap on the scores; [n, H, t, d], `hidden` [t of q, t of k] or with more in front."""
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = ((q * (scale if scale is not None else q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)).float()
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return drop(scores.softmax(-1).to(v.dtype), dropout) @ v


def _for_transformers(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any):
    """q [1, H, T, d] as transformers calls it; gives back [1, T, H, d]."""
    batch = _packed.get()
    if batch is None and more.get("softcap") is not None:
        return _capped(query, key, value, attention_mask, more["softcap"], more.get("scaling")), None
    if batch is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    causal = more.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window, softcap, dropout = more.get("sliding_window"), more.get("softcap"), more.get("dropout", 0.0)
    return attend(q, k, v, batch, more.get("scaling"), causal, window, softcap, dropout)[None], None


def _capped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, cap: float, scale: float | None) -> Tensor:
    """transformers' own way, of [B, H, t, d], with Gemma 2's softcap; gives [B, t, H, d]."""
    if seen is None:
        many, of = q.shape[2], k.shape[2]
        seen = torch.ones(many, of, dtype=torch.bool, device=q.device).tril(of - many)
    return _textbook(q, k, v, ~seen, scale, cap).transpose(1, 2)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _packed.get() is not None else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, _for_transformers)
AttentionMaskInterface.register(NAME, _mask)
