"""Shared prefixes: the tokens that several rows of a batch start with run once.

    rows    s s u a a a | s s u b b | s s c      s: a system prompt, virtual tokens, the question of a preference pair
    runs    s s u a a a         b b       c      U of T tokens; rows may part early or late, so they form a tree

In a causal model, a token's hidden states depend on itself and on the tokens before it, at their positions. Where these are
equal, so are the hidden states of every layer, and the gradient is the sum over the rows. Only attention needs whole rows:
its queries, keys and values are expanded again. Not used where tokens are changed at random one by one (dropout, noise on
embeddings).
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

MIN_SAVING = 1 / 32  # fraction of the tokens: below it, expanding rows for attention costs more than is saved

_off: ContextVar[bool] = ContextVar("prefix_sharing_off", default=False)


@contextmanager
def no_prefix_sharing() -> Iterator[None]:
    """Inside, every token of every row runs: something changes them one by one."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


@dataclass(frozen=True, kw_only=True)
class PrefixSharedBatch(Batch):
    """A batch whose `input_ids` and `position_ids` [U] hold each shared token once; all other fields are of whole rows."""

    token_index: Tensor
    """[T] which of the U tokens is at each position."""
    first_position: Tensor
    """[U] where each token occurs first, ascending."""
    row_ranges: tuple[tuple[tuple[int, int], ...], ...]
    """[B] each row's tokens among the U, as ranges (start, length)."""
    own_ranges: tuple[tuple[int, int], ...]
    """[B] the range of those that no earlier row has: the end of the row."""

    @property
    def shared_lengths(self) -> tuple[int, ...]:
        """[B] how many of each row's first tokens an earlier row has too."""
        return tuple(length - own for length, (_, own) in zip(self.lengths, self.own_ranges))

    def expand(self, x: Tensor) -> Tensor:
        """[U, ...] -> [T, ...]: whole rows."""
        return _Expand.apply(x, self)

    def compact(self, x: Tensor) -> Tensor:
        """[T, ...] -> [U, ...]: of each token, the value at its first position."""
        lengths = chain.from_iterable(zip(self.shared_lengths, (own for _, own in self.own_ranges)))
        return torch.cat(x.split(list(lengths))[1::2])


def share_prefixes(batch: Batch) -> Batch:
    """The batch with shared prefixes once; the batch itself where that saves less than MIN_SAVING."""
    if _off.get() or len(batch.lengths) < 2 or batch.adapters:
        return batch
    ids, positions = batch.input_ids.cpu().numpy(), batch.position_ids.cpu().numpy()
    nodes = _trie_nodes(np.stack([positions, ids], 1), batch.bounds)
    _, first, token_index = np.unique(nodes, return_index=True, return_inverse=True)
    if len(first) > (1 - MIN_SAVING) * len(nodes):
        return batch
    # np.unique numbers the tokens by node; renumber them in the order of their first positions
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first, token_index = first[order], rank[token_index.reshape(-1)]
    rows = [token_index[a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    num_own = [int((first[row] >= a).sum()) for row, a in zip(rows, batch.bounds)]
    device = batch.input_ids.device
    first_position = torch.from_numpy(first).to(device)
    whole_rows = {x.name: getattr(batch, x.name) for x in fields(Batch)}
    unique_tokens = {
        "input_ids": batch.input_ids[first_position],
        "position_ids": batch.position_ids[first_position],
    }
    return PrefixSharedBatch(
        **{**whole_rows, **unique_tokens},
        token_index=torch.from_numpy(token_index).to(device),
        first_position=first_position,
        row_ranges=tuple(_ranges(row) for row in rows),
        own_ranges=tuple((int(row[-1]) + 1 - own if own else 0, own) for row, own in zip(rows, num_own)),
    )


def _ranges(row: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Ascending indices as ranges (start, length) without gaps."""
    pieces = np.split(row, np.flatnonzero(np.diff(row) != 1) + 1)
    return tuple((int(x[0]), len(x)) for x in pieces)


def _trie_nodes(tokens: np.ndarray, bounds: tuple[int, ...]) -> np.ndarray:
    """Positions get the same number if the rows up to and including them are equal: their node in a trie of the rows.

    Sorted lexicographically, each row shares its longest prefix with its predecessor, so one comparison per row is enough.

    Args:
        tokens: [T, 2], position and id of each token.

    Returns:
        [T]
    """
    rows = [tokens[a:b] for a, b in zip(bounds, bounds[1:])]
    nodes, num_nodes = np.empty(len(tokens), np.int64), 0
    predecessor: tuple[np.ndarray, np.ndarray] | None = None  # the row sorted before this one, and its nodes
    for i in sorted(range(len(rows)), key=lambda i: rows[i].astype(">u8").tobytes()):  # big-endian bytes sort as numbers
        row, row_nodes, shared = rows[i], nodes[bounds[i] : bounds[i + 1]], 0
        if predecessor is not None:
            shortest = min(len(row), len(predecessor[0]))
            differs = (row[:shortest] != predecessor[0][:shortest]).any(1)
            shared = int(differs.argmax()) if differs.any() else shortest
            row_nodes[:shared] = predecessor[1][:shared]
        row_nodes[shared:] = np.arange(num_nodes, num_nodes + len(row) - shared)
        num_nodes += len(row) - shared
        predecessor = row, row_nodes
    return nodes


class _Expand(torch.autograd.Function):
    """x[token_index]; the gradient is summed in fp32 and in a fixed order, range by range."""

    @staticmethod
    def forward(ctx, x: Tensor, batch: PrefixSharedBatch) -> Tensor:
        ctx.batch = batch
        return x[batch.token_index]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads
        total, position = _zeros_fp32(g, len(ctx.batch.first_position)), 0
        for start, length in chain.from_iterable(ctx.batch.row_ranges):
            total[start : start + length] += g[position : position + length]
            position += length
        return total.to(g.dtype), None


def index_select_fp32_grad(x: Tensor, index: Tensor) -> Tensor:
    """x[index], whose gradient is summed in fp32 and in a fixed order.

    torch's own gradient is summed in x's dtype (a sum in bf16 stops growing after some hundred terms), and on several CPU
    threads in an order that differs from run to run.

    Args:
        x: [N, ...]
        index: [...] integers.

    Returns:
        [*index.shape, *x.shape[1:]]
    """
    return _IndexSelect.apply(x, index)


class _IndexSelect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(x)
        return x[index]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (index,) = ctx.saved_tensors
        g = grads[0].flatten(0, index.ndim - 1) if index.ndim else grads[0][None]
        total = _zeros_fp32(g, ctx.num_rows)
        return total.index_add_(0, index.flatten(), g.to(total.dtype)).to(g.dtype), None


def _zeros_fp32(like: Tensor, num_rows: int) -> Tensor:
    """Zeros [num_rows, ...] to sum gradients in: fp32, or wider where the gradients are."""
    return like.new_zeros(num_rows, *like.shape[1:], dtype=torch.promote_types(like.dtype, torch.float32))
