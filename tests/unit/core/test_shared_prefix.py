"""What rows begin with in common is laid down once, and found again."""

import random

import pytest
import torch

from weitiao.core.batch import Batch, pack
from weitiao.core.shared_prefix import LEAST, PrefixSharedBatch, merge, no_prefix_sharing


def packed(rows: list[list[int]]) -> Batch:
    return pack([{"input_ids": x, "labels": x} for x in rows])


def test_rows_diverge_early_and_late() -> None:
    batch = packed([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2], [7, 8], [1, 2, 3, 4, 5]])
    merged = merge(batch)
    assert isinstance(merged, PrefixSharedBatch)
    assert merged.input_ids.tolist() == [1, 2, 3, 4, 5, 9, 7, 8]
    assert merged.shared == (0, 5, 3, 2, 0)
    assert merged.bounds == batch.bounds and merged.tokens == batch.tokens == len(merged.labels)


def test_prefix_token_runs_once() -> None:
    """On random rows from few words: places share a token exactly where all up to there is the same."""
    rng_key = random.Random(0)
    for _ in range(50):
        batch = packed(
            [[rng_key.randrange(3) for _ in range(rng_key.randrange(1, 9))] for _ in range(rng_key.randrange(2, 9))]
        )
        merged = merge(batch)
        begins = [tuple(row["input_ids"][: t + 1]) for row in batch.rows for t in range(len(row["input_ids"]))]
        if not isinstance(merged, PrefixSharedBatch):
            assert len(set(begins)) > (1 - LEAST) * len(begins)
            continue
        assert len(merged.input_ids) == len(set(begins))
        assert [begins[i] for i in merged.first.tolist()] == list(dict.fromkeys(begins))
        assert [begins[i] for i in merged.first[merged.at].tolist()] == begins
        assert torch.equal(merged.input_ids[merged.at], batch.input_ids)
        assert torch.equal(merged.position_ids[merged.at], batch.position_ids)


def test_prefix_gradients_sum() -> None:
    merged = merge(packed([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2], [7, 8], [1, 2, 3, 4, 5]]))
    assert isinstance(merged, PrefixSharedBatch)
    few = torch.randn(len(merged.input_ids), 2, dtype=torch.double, requires_grad=True)
    every = torch.randn(merged.tokens, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(merged.laid_out, (few,)) and torch.autograd.gradcheck(merged.once, (every,))
    assert torch.equal(merged.once(merged.laid_out(few)), few)


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1, 2], [3, 4]], [[1, *range(2, 40)], [1, *range(50, 90)]]])
def test_short_prefix_not_merged(rows: list[list[int]]) -> None:
    batch = packed(rows)
    assert merge(batch) is batch


def test_different_positions_not_merged() -> None:
    batch = packed([[1, 2, 3], [1, 2, 3]])
    moved = Batch(batch.input_ids, torch.tensor([0, 1, 2, 4, 5, 6]), batch.labels, batch.bounds)
    assert isinstance(merge(batch), PrefixSharedBatch) and merge(moved) is moved


def test_rows_restored_separately() -> None:
    batch = packed([[1, 2, 3], [1, 2, 3]])
    with no_prefix_sharing():
        assert merge(batch) is batch
    assert isinstance(merge(batch), PrefixSharedBatch)
