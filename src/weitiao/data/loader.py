"""Loader: loader[i] is the i-th optimizer step's rows, a pure function of (rows, seed, i).

There is nothing to save and nothing to restore: resuming, or stepping over a bad stretch, only asks for another i.

    epoch e    permutation of the rows by a generator seeded with (seed, e)
               cut into steps of batch_size rows or batch_tokens tokens
    step i     this machine's share of those rows, longest first, packed into micro-batches of micro_tokens; rows of
               several tasks into micro-batches of one task each
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from weitiao.core.batch import Batch, Row, pack


class RowSource(Protocol):
    """What a loader reads: encoded rows with their lengths."""

    lengths: np.ndarray
    source: np.ndarray
    tasks: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...


@dataclass
class Loader:
    """Endless; each epoch is shuffled anew."""

    rows: RowSource
    seed: int
    batch_size: int | None = None
    """Rows a step; or"""
    batch_tokens: int | None = None
    """tokens a step: as many rows as fit, at least one."""
    micro_batch_tokens: int | None = None
    """Tokens a micro-batch; None: the whole step at once. A longer row stands alone."""
    weights: tuple[float, ...] = ()
    """By source, how often its rows are used an epoch."""
    rank: int = 0
    world: int = 1
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)

    def __getitem__(self, i: int) -> list[Batch]:
        """The micro-batches of step i on this machine; empty if the step has fewer rows than machines."""
        epoch, at = self.locate(i)
        mine = self.epoch(epoch)[at][self.rank :: self.world]
        return [pack([self.rows[j] for j in chosen], chosen, rng_key=(self.seed, i)) for chosen in self._micro(mine)]

    def locate(self, i: int) -> tuple[int, int]:
        """(epoch, step within it) of step i."""
        epoch = 0
        while i >= self.start(epoch + 1):
            epoch += 1
        return epoch, i - self.start(epoch)

    def start(self, epoch: int) -> int:
        """The number of an epoch's first step."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
        return self._starts[epoch]

    def steps(self, epochs: float) -> int:
        """Optimizer steps in so many epochs, at least one."""
        whole = int(epochs)
        rest = epochs - whole
        return max(1, self.start(whole) + (round(rest * len(self.epoch(whole))) if rest else 0))

    def epoch(self, number: int) -> list[np.ndarray]:
        """An epoch's steps: for each, the row numbers."""
        if number not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.clear()
            self._epochs[number] = self._cut(self._order(number))
        return self._epochs[number]

    def _order(self, number: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, number))
        every = np.arange(len(self.rows))
        if any(w != 1.0 for w in self.weights):
            share = np.asarray(self.weights)[self.rows.source]
            times = np.floor(share).astype(int) + (random.random(len(every)) < share % 1)
            every = np.repeat(every, times)
            if not len(every):
                every = np.arange(len(self.rows))
        return random.permutation(every)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        if self.batch_size is not None:
            return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        assert self.batch_tokens is not None, "give batch_size or batch_tokens"
        cuts, sum_ = [], 0
        for at, length in enumerate(self.rows.lengths[order]):
            if sum_ and sum_ + length > self.batch_tokens:
                cuts.append(at)
                sum_ = 0
            sum_ += length
        return np.split(order, cuts)

    def _micro(self, chosen: np.ndarray) -> Iterator[list[int]]:
        task = self.rows.tasks.__getitem__ if self.rows.tasks and self.micro_batch_tokens is not None else lambda j: ""
        longest_first = sorted(chosen.tolist(), key=lambda j: (task(j), -self.rows.lengths[j], j))
        now: list[int] = []
        tokens = 0
        for j in longest_first:
            length = int(self.rows.lengths[j])
            full = self.micro_batch_tokens is not None and tokens + length > self.micro_batch_tokens
            if now and (full or task(j) != task(now[-1])):
                yield now
                now, tokens = [], 0
            now.append(j)
            tokens += length
        if now:
            yield now


def in_order(rows: RowSource, tokens: int) -> Iterator[Batch]:
    """Every row once, in batches of at most `tokens`, for measuring. `batch.source` says which row is which."""
    now: list[int] = []
    sum_ = 0
    for j in range(len(rows)):
        length = int(rows.lengths[j])
        if now and sum_ + length > tokens:
            yield pack([rows[k] for k in now], now)
            now, sum_ = [], 0
        now.append(j)
        sum_ += length
    if now:
        yield pack([rows[k] for k in now], now)
