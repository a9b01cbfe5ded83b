"""Which rows of a batch go through which adapter, grouped once per step for all layers.

    tokens       a a a a | b | c | a a | - - -        - : the base model
    one group    a: tokens 0-3, 6-7                   32 tokens or more: products of its own
    one bucket   b: 4, c: 5                           fewer: a group is padded to the largest of its bucket, one bmm for all

A bucket holds groups whose sizes have the same power of two above them, so less than half of a bucket is padding.
"""

from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from weitiao.core.errors import ModelError

BASE = -1
"""The slot of rows without an adapter."""
LARGE = 32
"""Tokens from which on a group is multiplied alone: a product of this size keeps a core busy."""

Span = tuple[int, int]
Rows = slice | Tensor
"""Tokens of a batch: adjacent ones, or [N] positions."""


@dataclass(frozen=True)
class Group:
    """The tokens of one adapter."""

    slot: int
    rows: Rows


@dataclass(frozen=True)
class Bucket:
    """Groups of similar size, each padded to `width` tokens."""

    slots: tuple[int, ...]
    width: int
    source: Rows
    """[groups x width]: the token at each place; a place that is padding repeats a token of its group."""
    target: Tensor
    """[N]: the tokens of all groups."""
    positions: Tensor | None
    """[N]: the places of these tokens; None: there is no padding."""


@dataclass(frozen=True)
class Plan:
    """All groups of a batch."""

    groups: tuple[Group, ...]
    buckets: tuple[Bucket, ...]
    looped: tuple[Group, ...]
    """Of adapters that are not stacked."""


@dataclass(frozen=True)
class Routing:
    """The slot of each row, along the first dimension of a layer's input."""

    slots: tuple[int, ...]
    """BASE, or a slot of the stacks."""
    lengths: tuple[int, ...] | None
    """Tokens of each row, where rows are packed end to end; None: a padded batch [B, T, D]."""
    looped: Collection[int]
    """Slots of adapters that are not stacked."""
    device: torch.device
    _plans: dict[int, Plan] = field(default_factory=dict)

    def plan_for(self, x: Tensor) -> Plan:
        """The groups of a layer's input, [T, D] or [1, T, D] if packed, else [B, T, D].

        Raises:
            ModelError: the input does not have the batch's rows.
        """
        packed = self.lengths is not None
        num_rows = sum(self.lengths) if self.lengths is not None else len(self.slots)
        length = x.shape[:-1].numel() if packed else len(x)
        if length != num_rows or (not packed and x.ndim != 3):
            raise ModelError(
                "this model's layers do not keep a batch's rows apart (a layer got shape {shape} instead of {num_rows} "
                "rows), so adapters cannot be mixed in one batch: use one at a time",
                shape=list(x.shape),
                num_rows=num_rows,
            )
        width = 0 if packed else x.shape[1]
        if width not in self._plans:
            lengths = self.lengths if self.lengths is not None else (width,) * num_rows
            self._plans[width] = make_plan(self.slots, lengths, self.looped, self.device)
        return self._plans[width]


current: ContextVar[Routing | None] = ContextVar("routing", default=None)
"""Set by `AdapterPool.select`."""


def make_plan(slots: Sequence[int], lengths: Sequence[int], looped: Collection[int], device: torch.device) -> Plan:
    """Group the tokens of packed rows by their adapters.

    Args:
        slots: of each row.
        lengths: tokens of each row.
        looped: slots that stay out of the buckets.
    """
    spans = _spans_by_slot(slots, lengths)
    sizes = {slot: sum(end - start for start, end in own) for slot, own in spans.items()}
    by_size: dict[int, list[int]] = {}
    for slot, size in sizes.items():
        if slot not in looped:
            by_size.setdefault(LARGE if size >= LARGE else (size - 1).bit_length(), []).append(slot)
    alone = by_size.pop(LARGE, [])
    alone += [members[0] for members in by_size.values() if len(members) == 1]
    buckets = [_bucket({x: spans[x] for x in members}, device) for members in by_size.values() if len(members) > 1]
    groups = tuple(Group(slot, _rows(spans[slot], device)) for slot in alone)
    return Plan(groups, tuple(buckets), tuple(Group(x, _rows(spans[x], device)) for x in spans if x in looped))


def _spans_by_slot(slots: Sequence[int], lengths: Sequence[int]) -> dict[int, list[Span]]:
    """The tokens of each slot as spans, adjacent ones joined; slots in the order of their first token."""
    spans: dict[int, list[Span]] = {}
    for slot, length, end in zip(slots, lengths, accumulate(lengths), strict=True):
        if slot == BASE or not length:
            continue
        own, start = spans.setdefault(slot, []), end - length
        if own and own[-1][1] == start:
            own[-1] = own[-1][0], end
        else:
            own.append((start, end))
    return spans


def _positions(spans: Iterable[Span]) -> list[int]:
    return [i for start, end in spans for i in range(start, end)]


def _rows(spans: Sequence[Span], device: torch.device) -> Rows:
    return slice(*spans[0]) if len(spans) == 1 else torch.tensor(_positions(spans), device=device)


def _bucket(spans: dict[int, list[Span]], device: torch.device) -> Bucket:
    """Groups in the order of their slots, if these are adjacent (the stacks are then used as they are); otherwise in the
    order of their tokens (the factors are gathered, tokens seldom)."""
    if max(spans) - min(spans) == len(spans) - 1:
        spans = dict(sorted(spans.items()))
    groups = [_positions(own) for own in spans.values()]
    width = max(map(len, groups))
    source = [i for group in groups for i in (*group, *group[:1] * (width - len(group)))]
    target = [i for group in groups for i in group]
    positions = [k * width + i for k, group in enumerate(groups) for i in range(len(group))]
    in_order = source == list(range(source[0], source[0] + len(source)))
    return Bucket(
        slots=tuple(spans),
        width=width,
        source=slice(source[0], source[0] + len(source)) if in_order else torch.tensor(source, device=device),
        target=torch.tensor(target, device=device),
        positions=None if len(positions) == len(source) else torch.tensor(positions, device=device),
    )
