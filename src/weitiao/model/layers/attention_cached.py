"""Attention over cached keys and values: each row has a slot that holds those of its earlier tokens.

    slot 0   k k k k k k . .      a row of 5 cached tokens and a new one
    slot 1   k k k k . . . .      a row whose prompt is being read, 3 new tokens after 1
    slot 2   . . . . . . . .      free; what it held may still serve as a prefix

A block calls `attend` with the new tokens' queries, keys and values, packed end to end; with a CachedBatch, the keys and
values are written to their slots, and the queries attend to all that is there. So every block, and every module that a
method put into one, generates with a cache without knowing it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from weitiao.core.batch import Batch
from weitiao.model.kernels.generation import CachedAttention, GenerationKernels, generation_kernels

LENGTH_BLOCK = 64  # tokens by which slots grow, at least
MAX_PADDING = 2.0  # rows of one token share a product if the longest is at most this many times the shortest


@dataclass
class KVCache:
    """Keys and values of all layers, [slots, H_kv, length, d] each; allocated at the first use of a layer."""

    max_bytes: int
    num_slots: int = 0
    length: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def bytes_per_token(self) -> int:
        """0: not known before the first forward pass."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for layer in self.layers for x in layer)

    def fits(self, num_slots: int, length: int) -> bool:
        """Whether so many slots of this length are within the memory."""
        return num_slots * length * self.bytes_per_token <= self.max_bytes

    def reserve(self, num_slots: int, length: int) -> None:
        """Make room for this many slots and tokens. It grows by half, where that fits, so that copying stays linear."""
        if num_slots <= self.num_slots and length <= self.length:
            return
        slots, longest = max(num_slots, self.num_slots), max(length, self.length)
        if num_slots > self.num_slots:
            slots = max(slots, self.num_slots * 3 // 2)
        if length > self.length:
            longest = max(longest, self.length * 3 // 2)
        longest = -(-longest // LENGTH_BLOCK) * LENGTH_BLOCK
        if not self.fits(slots, longest):  # no more than is needed
            slots, longest = max(num_slots, self.num_slots), max(length, self.length)
        self.num_slots, self.length = slots, longest
        self.layers = [(self._grown(keys), self._grown(values)) for keys, values in self.layers]

    def _grown(self, old: Tensor) -> Tensor:
        # zeros: what no row has written is multiplied by a weight of 0, and 0 * NaN is NaN
        new = old.new_zeros(self.num_slots, old.shape[1], self.length, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def layer(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer.

        Args:
            k, v: [T, H_kv, d], whose shape and dtype a new layer gets.
        """
        while len(self.layers) <= number:
            keys, values = (x.new_zeros(self.num_slots, x.shape[1], self.length, x.shape[2]) for x in (k, v))
            self.layers.append((keys, values))
        return self.layers[number]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        for layer in self.layers:
            for x in layer:
                x[target, :, :length] = x[source, :, :length]

    def clear(self) -> None:
        """Free the memory."""
        self.num_slots, self.length, self.layers = 0, 0, []


@dataclass(frozen=True)
class NewTokens:
    """New tokens of one row."""

    slot: int
    past: int
    """Tokens that are cached."""
    count: int = 1


@dataclass(frozen=True)
class SingleTokens:
    """Rows with one new token each, whose attention is one product."""

    tokens: slice
    """Which of the batch's tokens they are."""
    slots: slice | Tensor
    lengths: Tensor
    """[R] keys of each row, the new one included."""
    longest: int

    def hidden(self, window: int | None) -> Tensor:
        """[R, 1, 1, longest]: True where a key is not attended to."""
        keys = torch.arange(self.longest, device=self.lengths.device)
        hidden = keys >= self.lengths[:, None]
        if window is not None:
            hidden = hidden | (keys < self.lengths[:, None] - window)
        return hidden[:, None, None]


@dataclass
class LayerNumber:
    """Which layer runs: the caller sets it before each layer."""

    value: int = 0


@dataclass(frozen=True, kw_only=True)
class CachedBatch(Batch):
    """New tokens of several rows: first the rows with one token each, by length; then all others."""

    cache: KVCache
    new: tuple[NewTokens, ...]
    """[B]"""
    layer: LayerNumber = field(default_factory=LayerNumber)
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    @cached_property
    def slots(self) -> Tensor:
        """[T] the slot of each token."""
        counts = torch.tensor([x.count for x in self.new])
        return torch.tensor([x.slot for x in self.new]).repeat_interleave(counts).to(self.input_ids.device)

    @cached_property
    def indices(self) -> tuple[Tensor, Tensor]:
        """[T] int32 each, for the compiled kernel: the slot of each token, and its place in it."""
        return self.slots.int(), self.position_ids.int()

    @cached_property
    def singles(self) -> list[SingleTokens]:
        """The rows with one token, in groups of similar length."""
        groups: list[list[int]] = []
        for i, row in enumerate(self.new):
            if row.count > 1:
                break
            if groups and row.past + 1 <= MAX_PADDING * (self.new[groups[-1][0]].past + 1) + LENGTH_BLOCK:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [self._single_tokens(group) for group in groups]

    def _single_tokens(self, group: Sequence[int]) -> SingleTokens:
        device, slots = self.input_ids.device, [self.new[i].slot for i in group]
        lengths = torch.tensor([self.new[i].past + 1 for i in group], device=device)
        adjacent = slots == list(range(slots[0], slots[0] + len(slots)))
        where = slice(slots[0], slots[0] + len(slots)) if adjacent else torch.tensor(slots, device=device)
        return SingleTokens(slice(group[0], group[-1] + 1), where, lengths, max(self.new[i].past + 1 for i in group))


def cached_batch(
    cache: KVCache, new: Sequence[NewTokens], ids: Sequence[Sequence[int]], device: torch.device
) -> CachedBatch:
    """The batch of these new tokens.

    Args:
        new: rows with one token first, shortest first.
        ids: of the new tokens of each row.
    """
    cache.reserve(1 + max(x.slot for x in new), max(x.past + x.count for x in new))
    flat = torch.tensor([token for row in ids for token in row], device=device)
    positions = torch.tensor([x.past + i for x in new for i in range(x.count)], device=device)
    bounds = [0]
    for x in new:
        bounds.append(bounds[-1] + x.count)
    return CachedBatch(
        input_ids=flat, position_ids=positions, labels=flat, bounds=tuple(bounds), cache=cache, new=tuple(new)
    )


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, batch: CachedBatch, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of new tokens to their rows' cached tokens and to themselves, whose keys and values are cached.

    Args:
        q: [T, H, d]. k: [T, H_kv, d]. v: [T, H_kv, d_v].
        window: a token attends to at most this many tokens back, itself included.
        softcap: cap * tanh(scores / cap).

    Returns:
        [T, H, d_v]
    """
    keys, values = batch.cache.layer(batch.layer.value, k, v)
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    kernels = generation_kernels() if q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16) else None
    if kernels is not None and q.dtype == k.dtype == v.dtype == keys.dtype:
        return _attend_compiled(q, k, v, (keys, values), batch, (factor, window, softcap), kernels)
    keys[batch.slots, :, batch.position_ids] = k.to(keys.dtype)
    values[batch.slots, :, batch.position_ids] = v.to(values.dtype)
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for i, group in enumerate(batch.singles):
        hidden = _mask(batch, i, group, window)
        ks, vs = (x[group.slots][:, :, : group.longest] for x in (keys, values))
        out[group.tokens] = _attend_one(q[group.tokens], ks, vs, hidden, factor, softcap)
    for row, start, stop in zip(batch.new, batch.bounds, batch.bounds[1:]):
        if row.count > 1:
            ks, vs = (x[row.slot : row.slot + 1, :, : row.past + row.count] for x in (keys, values))
            out[start:stop] = _attend_many(q[start:stop], ks, vs, row.past, factor, window, softcap)
    return out


def _attend_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: tuple[Tensor, Tensor],
    batch: CachedBatch,
    options: tuple[float, int | None, float | None],
    kernels: GenerationKernels,
) -> Tensor:
    """The same by the compiled kernel."""
    (keys, values), (scale, window, softcap) = cached, options
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    slots, positions = batch.indices
    arguments = CachedAttention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(),
        len(q), q.shape[1], k.shape[1], k.shape[2], v.shape[2], keys.shape[2], window or 0, scale, softcap or 0.0,
        slots.data_ptr(), positions.data_ptr(),
    )  # fmt: skip
    kernels.attend(q.dtype, arguments)
    return out


def _mask(batch: CachedBatch, number: int, group: SingleTokens, window: int | None) -> Tensor | None:
    """The mask of a group, computed once for all layers with the same window; None: nothing is hidden."""
    window = None if window is None or window >= group.longest else window
    if (number, window) not in batch.masks:
        hidden = group.hidden(window)
        batch.masks[number, window] = hidden if bool(hidden.any()) else None
    return batch.masks[number, window]


def _attend_one(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """q [R, H, d], k and v [R, H_kv, t, d] -> [R, H, d_v]: one query per row."""
    grouped = q.unflatten(1, (k.shape[1], -1))  # [R, H_kv, r, d]
    scores = ((grouped * scale) @ k.transpose(-1, -2)).float()
    return (_weights(scores, hidden, softcap).to(v.dtype) @ v).flatten(1, 2).to(q.dtype)


def _attend_many(
    q: Tensor, k: Tensor, v: Tensor, past: int, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """q [n, H, d], k and v [1, H_kv, past + n, d] -> [n, H, d_v]: a row's new tokens, its last."""
    num_keys, qs = k.shape[2], q.transpose(0, 1)[None]  # [1, H, n, d]
    hidden = None
    if past or softcap is not None or (window is not None and window < num_keys):
        distance = torch.arange(past, num_keys, device=q.device)[:, None] - torch.arange(num_keys, device=q.device)
        hidden = (distance < 0) | (distance >= window) if window is not None else distance < 0
    if softcap is None:
        gqa, visible = qs.shape[1] != k.shape[1], None if hidden is None else ~hidden
        out = scaled_dot_product_attention(
            qs, k.to(q.dtype), v.to(q.dtype), visible, is_causal=hidden is None, scale=scale, enable_gqa=gqa
        )
        return out[0].transpose(0, 1)
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = ((qs * scale) @ k.transpose(-1, -2)).float()
    return (_weights(scores, hidden, softcap).to(v.dtype) @ v)[0].transpose(0, 1).to(q.dtype)


def _weights(scores: Tensor, hidden: Tensor | None, softcap: float | None) -> Tensor:
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1)
