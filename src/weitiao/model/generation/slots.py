"""Slots: where the keys and values of running rows are, and what freed slots still hold.

A freed slot keeps its tokens until another row needs it. A new row whose prompt starts with tokens that some slot holds,
by the same adapter, takes them over instead of computing them again: in place, if the slot is free, or by a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MIN_SHARED = 8  # tokens; taking over fewer is not worth the copy


@dataclass
class Slot:
    """One row's place in the cache."""

    number: int
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """The tokens that it will hold when the prompt of its row is read; of a free slot, those that it holds."""
    cached: int = 0
    """How many of them it holds now."""
    adapter: str = ""
    last_used: int = 0
    is_free: bool = True


@dataclass(frozen=True)
class SharedPrefix:
    """What a slot has in common with a prompt."""

    slot: Slot
    length: int
    """Tokens that it holds now."""
    expected: int
    """Tokens that it will hold."""


@dataclass
class SlotTable:
    """All slots, at most `limit`."""

    limit: int
    slots: list[Slot] = field(default_factory=list)
    _clock: int = 0

    @property
    def num_free(self) -> int:
        return self.limit - sum(not x.is_free for x in self.slots)

    @property
    def has_free(self) -> bool:
        """Whether one of the slots that there are is free."""
        return any(x.is_free for x in self.slots)

    @property
    def cached_tokens(self) -> int:
        """Tokens in free slots."""
        return sum(x.cached for x in self.slots if x.is_free)

    def shared(self, prompt: np.ndarray, adapter: str) -> SharedPrefix | None:
        """The slot that holds, or soon will hold, most of a prompt's first tokens; the last one must run in any case."""
        found = None
        for slot in self.slots:
            if slot.adapter != adapter or not len(slot.ids):
                continue
            expected = common_prefix(slot.ids, prompt[:-1])
            length = min(expected, slot.cached)
            better = found is None or (expected, length, slot.is_free) > (found.expected, found.length, found.slot.is_free)
            if expected >= MIN_SHARED and better:
                found = SharedPrefix(slot, length, expected)
        return found

    def take(self, prefer: Slot | None, may_grow: bool) -> Slot:
        """A free slot: the preferred one, an empty one, a new one, or the one whose tokens were not used for longest."""
        free = [x for x in self.slots if x.is_free]
        empty = next((x for x in free if not x.cached), None)
        if prefer is not None and prefer.is_free:
            slot = prefer
        elif empty is not None:
            slot = empty
        elif may_grow and len(self.slots) < self.limit:
            slot = Slot(len(self.slots))
            self.slots.append(slot)
        else:
            slot = min(free, key=lambda x: x.last_used)
        slot.is_free = False
        return slot

    def touch(self, slot: Slot) -> None:
        """Note that a slot was used now."""
        self._clock += 1
        slot.last_used = self._clock

    def free(self, slot: Slot, ids: Sequence[int]) -> None:
        """The row of a slot has ended; `ids` are its tokens, of which the slot holds `slot.cached`."""
        slot.ids, slot.is_free = np.asarray(ids[: slot.cached], np.int64), True
        self.touch(slot)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many first elements are equal."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
