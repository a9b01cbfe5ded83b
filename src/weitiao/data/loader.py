"""Loader: loader[i] is the batch of optimizer step i, a pure function of (rows, seed, i).

It has no state to save or restore: resuming, or skipping bad batches, only asks for another i.

    epoch e    a permutation of the rows, from a generator seeded with (seed, e),
               split into steps of batch_size rows or batch_tokens tokens; with a mixture, an order that keeps the shares
               of groups (mixed_order.py)
    step i     this process's share of those rows, longest first, packed into micro-batches of micro_batch_tokens; with
               several tasks, each micro-batch has rows of one task
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, overload

import numpy as np

from weitiao.core.batch import Batch, Row, pack
from weitiao.core.mixing import Mixture
from weitiao.data.mixed_order import MixedOrder


class RowSource(Protocol):
    """Encoded rows with their lengths, as a loader reads them."""

    lengths: np.ndarray
    source: np.ndarray
    tasks: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...


@dataclass
class Loader:
    """The batches of all steps; each epoch has an order of its own."""

    rows: RowSource
    seed: int
    batch_size: int | None = None
    """Rows per step; or"""
    batch_tokens: int | None = None
    """tokens per step: as many rows as fit, at least one."""
    micro_batch_tokens: int | None = None
    """Tokens per micro-batch; None: the whole step at once. A longer row is a micro-batch of its own."""
    weights: tuple[float, ...] = ()
    """By source, how often its rows are used per epoch; or"""
    mixture: Mixture | None = None
    """shares of groups in all tokens."""
    rank: int = 0
    world: int = 1
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)

    def __getitem__(self, i: int) -> list[Batch]:
        """The micro-batches of step i in this process; empty if the step has fewer rows than there are processes."""
        epoch, step = self.locate(i)
        own = self.epoch(epoch)[step][self.rank :: self.world]
        return [pack([self.rows[j] for j in ids], ids, rng_key=(self.seed, i)) for ids in self._micro_batches(own)]

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
        """Optimizer steps in a number of epochs, at least one."""
        whole = int(epochs)
        rest = epochs - whole
        return max(1, self.start(whole) + (round(rest * len(self.epoch(whole))) if rest else 0))

    def epoch(self, number: int) -> list[np.ndarray]:
        """The row ids of each step of an epoch."""
        if number not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.clear()
            self._epochs[number] = self._split(self._order(number))
        return self._epochs[number]

    @cached_property
    def _mixed(self) -> MixedOrder | None:
        return None if self.mixture is None else MixedOrder(self.mixture, self.rows.lengths, self.seed)

    def _order(self, number: int) -> np.ndarray:
        if self._mixed is not None:
            return self._mixed.epoch(number)
        random = np.random.default_rng((self.seed, number))
        ids = np.arange(len(self.rows))
        if any(w != 1.0 for w in self.weights):
            weight = np.asarray(self.weights)[self.rows.source]
            # a weight of 2.25 is twice, and a third time for a random quarter of the rows
            times = np.floor(weight).astype(int) + (random.random(len(ids)) < weight % 1)
            ids = np.repeat(ids, times)
            if not len(ids):
                ids = np.arange(len(self.rows))
        return random.permutation(ids)

    def _split(self, order: np.ndarray) -> list[np.ndarray]:
        """The rows of an epoch, by step."""
        if not len(order):  # an epoch shorter than a row; its tokens are the next one's
            return []
        if self.batch_size is not None:
            return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        assert self.batch_tokens is not None, "set batch_size or batch_tokens"
        starts, tokens = [], 0
        for i, length in enumerate(self.rows.lengths[order]):
            if tokens and tokens + length > self.batch_tokens:
                starts.append(i)
                tokens = 0
            tokens += length
        return np.split(order, starts)

    def _micro_batches(self, ids: np.ndarray) -> Iterator[list[int]]:
        task = self.rows.tasks.__getitem__ if self.rows.tasks and self.micro_batch_tokens is not None else lambda j: ""
        longest_first = sorted(ids.tolist(), key=lambda j: (task(j), -self.rows.lengths[j], j))
        group: list[int] = []
        tokens = 0
        for j in longest_first:
            length = int(self.rows.lengths[j])
            full = self.micro_batch_tokens is not None and tokens + length > self.micro_batch_tokens
            if group and (full or task(j) != task(group[-1])):
                yield group
                group, tokens = [], 0
            group.append(j)
            tokens += length
        if group:
            yield group


class InOrder(Sequence[Batch]):
    """Every row once, in batches of at most `max_tokens`, for evaluation. `batch.row_ids` names the rows; a batch is read
    when it is asked for."""

    def __init__(self, rows: RowSource, max_tokens: int) -> None:
        self.rows, self.groups = rows, list[range]()
        start = tokens = 0
        for j, length in enumerate(rows.lengths.tolist()):
            if j > start and tokens + length > max_tokens:
                self.groups.append(range(start, j))
                start, tokens = j, 0
            tokens += length
        if start < len(rows):
            self.groups.append(range(start, len(rows)))

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, i: int) -> Batch: ...
    @overload
    def __getitem__(self, i: slice) -> list[Batch]: ...
    def __getitem__(self, i: int | slice) -> Batch | list[Batch]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        group = self.groups[i]
        return pack([self.rows[k] for k in group], list(group))
