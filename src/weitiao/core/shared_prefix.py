"""Rows that begin alike: what they have in common runs once.

    rows    s s u a a a | s s u b b | s s c      s: a system prompt, a soft prompt's slots, a preference pair's question
    run     s s u a a a         b b       c      U of T tokens; a tree, so rows may part early or late

In a causal model a token is made of itself and of those before it, at the same positions: where all of these are the same,
so is what every layer makes of it, and its gradient is the sum of what the rows ask of it. Only attention needs rows whole:
its queries, keys and values are laid out again. Not where chance draws for each token apart (dropout, noise on embeddings).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weitiao.core.batch import Batch
from weitiao.core.gathered import sums

LEAST = 1 / 32  # of the tokens: less is not worth laying rows out again

_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def no_prefix_sharing() -> Iterator[None]:
    """Inside, no rows are merged: something changes their tokens one by one."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


@dataclass(frozen=True, kw_only=True)
class PrefixSharedBatch(Batch):
    """A batch whose `input_ids` and `position_ids` [U] are of those tokens alone that run; all else is of whole rows."""

    at: Tensor  # [T] which of the U each place of the rows is
    first: Tensor  # [U] the first place where each stands, ascending
    ranges: tuple[tuple[tuple[int, int], ...], ...]  # [B] where the U have each row's tokens: (the first, how many) ...
    own: tuple[tuple[int, int], ...]  # [B] and those of them that no earlier row has: its last

    @property
    def shared(self) -> tuple[int, ...]:
        """[B] with how many tokens that ran in an earlier row each begins."""
        return tuple(n - many for n, (_, many) in zip(self.lengths, self.own))

    def laid_out(self, x: Tensor) -> Tensor:
        """[U, ...] -> [T, ...]: rows whole."""
        return _LaidOut.apply(x, self)  # pyright: ignore[reportReturnType]

    def once(self, x: Tensor) -> Tensor:
        """[T, ...] -> [U, ...]: of each token that runs, what its first place has."""
        cuts = [many for both in zip(self.shared, (many for _, many in self.own)) for many in both]
        return torch.cat(x.split(cuts)[1::2])


def merge(batch: Batch) -> Batch:
    """The batch with what its rows have in common once; the batch itself where that saves little."""
    if _apart.get() or len(batch.lengths) < 2 or batch.adapters:
        return batch
    ids, positions = batch.input_ids.cpu().numpy(), batch.position_ids.cpu().numpy()
    nodes = _nodes(np.stack([positions, ids], 1), batch.bounds)
    _, first, at = np.unique(nodes, return_index=True, return_inverse=True)
    if len(first) > (1 - LEAST) * len(nodes):
        return batch
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first, at = first[order], rank[at.reshape(-1)]
    rows = [at[a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    many = [int((first[row] >= a).sum()) for row, a in zip(rows, batch.bounds)]
    device = batch.input_ids.device
    chosen = torch.from_numpy(first).to(device)
    whole = {x.name: getattr(batch, x.name) for x in fields(Batch)}
    fewer = {"input_ids": batch.input_ids[chosen], "position_ids": batch.position_ids[chosen]}
    return PrefixSharedBatch(
        **{**whole, **fewer},
        at=torch.from_numpy(at).to(device),
        first=chosen,
        ranges=tuple(_ranges(row) for row in rows),
        own=tuple((int(row[-1]) + 1 - n if n else 0, n) for row, n in zip(rows, many)),
    )


def _ranges(row: np.ndarray) -> tuple[tuple[int, int], ...]:
    parts = np.split(row, np.flatnonzero(np.diff(row) != 1) + 1)
    return tuple((int(x[0]), len(x)) for x in parts)


def _nodes(tokens: np.ndarray, bounds: tuple[int, ...]) -> np.ndarray:
    """[T]: a number for each different beginning that a row [0 .. t] has. Of rows in the order of the alphabet, each shares
    the most with its neighbour."""
    rows = [tokens[a:b] for a, b in zip(bounds, bounds[1:])]
    made, many = np.empty(len(tokens), np.int64), 0
    before: tuple[np.ndarray, np.ndarray] | None = None
    for i in sorted(range(len(rows)), key=lambda i: rows[i].astype(">u8").tobytes()):
        row, shared = rows[i], 0
        mine = made[bounds[i] : bounds[i + 1]]
        if before is not None:
            short = min(len(row), len(before[0]))
            differs = (row[:short] != before[0][:short]).any(1)
            shared = int(differs.argmax()) if differs.any() else short
            mine[:shared] = before[1][:shared]
        mine[shared:] = np.arange(many, many + len(row) - shared)
        many += len(row) - shared
        before = row, mine
    return made


class _LaidOut(torch.autograd.Function):
    """x[at]; backward: the sum over the places where a token stands, range by range, in a fixed order."""

    @staticmethod
    def forward(ctx, x: Tensor, batch: PrefixSharedBatch) -> Tensor:
        ctx.batch = batch
        return x[batch.at]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        found, place = sums(g, len(ctx.batch.first)), 0
        for token, many in chain.from_iterable(ctx.batch.ranges):
            found[token : token + many] += g[place : place + many]
            place += many
        return found.to(g.dtype), None
