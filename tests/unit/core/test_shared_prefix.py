"""A prefix that rows share is found, computed once, and its gradients add up."""

import random

import pytest
import torch

from weitiao.core.batch import Batch, pack
from weitiao.core.shared_prefix import (
    MIN_SAVING,
    PrefixSharedBatch,
    index_select_fp32_grad,
    no_prefix_sharing,
    share_prefixes,
)


def packed(rows: list[list[int]]) -> Batch:
    return pack([{"input_ids": x, "labels": x} for x in rows])


def test_rows_diverge_early_and_late() -> None:
    batch = packed([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2], [7, 8], [1, 2, 3, 4, 5]])
    merged = share_prefixes(batch)
    assert isinstance(merged, PrefixSharedBatch)
    assert merged.input_ids.tolist() == [1, 2, 3, 4, 5, 9, 7, 8]
    assert merged.shared_lengths == (0, 5, 3, 2, 0)
    assert merged.bounds == batch.bounds and merged.tokens == batch.tokens == len(merged.labels)


def test_prefix_token_runs_once() -> None:
    """On random rows from few words: places share a token exactly where all up to there is the same."""
    rng_key = random.Random(0)
    for _ in range(50):
        batch = packed(
            [[rng_key.randrange(3) for _ in range(rng_key.randrange(1, 9))] for _ in range(rng_key.randrange(2, 9))]
        )
        merged = share_prefixes(batch)
        begins = [tuple(row["input_ids"][: t + 1]) for row in batch.rows for t in range(len(row["input_ids"]))]
        if not isinstance(merged, PrefixSharedBatch):
            assert len(set(begins)) > (1 - MIN_SAVING) * len(begins)
            continue
        assert len(merged.input_ids) == len(set(begins))
        assert [begins[i] for i in merged.first_position.tolist()] == list(dict.fromkeys(begins))
        assert [begins[i] for i in merged.first_position[merged.token_index].tolist()] == begins
        assert torch.equal(merged.input_ids[merged.token_index], batch.input_ids)
        assert torch.equal(merged.position_ids[merged.token_index], batch.position_ids)


def test_prefix_gradients_sum() -> None:
    merged = share_prefixes(packed([[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2], [7, 8], [1, 2, 3, 4, 5]]))
    assert isinstance(merged, PrefixSharedBatch)
    few = torch.randn(len(merged.input_ids), 2, dtype=torch.double, requires_grad=True)
    every = torch.randn(merged.tokens, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(merged.expand, (few,)) and torch.autograd.gradcheck(merged.compact, (every,))
    assert torch.equal(merged.compact(merged.expand(few)), few)


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1, 2], [3, 4]], [[1, *range(2, 40)], [1, *range(50, 90)]]])
def test_short_prefix_not_merged(rows: list[list[int]]) -> None:
    batch = packed(rows)
    assert share_prefixes(batch) is batch


def test_different_positions_not_merged() -> None:
    batch = packed([[1, 2, 3], [1, 2, 3]])
    moved = Batch(batch.input_ids, torch.tensor([0, 1, 2, 4, 5, 6]), batch.labels, batch.bounds)
    assert isinstance(share_prefixes(batch), PrefixSharedBatch) and share_prefixes(moved) is moved


def test_rows_restored_separately() -> None:
    batch = packed([[1, 2, 3], [1, 2, 3]])
    with no_prefix_sharing():
        assert share_prefixes(batch) is batch
    assert isinstance(share_prefixes(batch), PrefixSharedBatch)


def test_index_select_equals_indexing() -> None:
    x, at = torch.randn(7, 3, 2, requires_grad=True), torch.tensor([[6, 0, 0], [1, 6, 6]])
    assert torch.equal(index_select_fp32_grad(x, at), x[at])
    assert torch.autograd.gradcheck(lambda y: index_select_fp32_grad(y, at), x.detach().double().requires_grad_())


def test_index_select_gradient_summed_in_fp32() -> None:
    x = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    index_select_fp32_grad(x, torch.zeros(4096, dtype=torch.long)).sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == [4096.0] * 4 and not x.grad[1].any()
    plain = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    plain[torch.zeros(4096, dtype=torch.long)].sum().backward()
    assert plain.grad is not None and plain.grad[0, 0] != 4096, "torch's own gradient would do"


def test_index_select_gradient_deterministic() -> None:
    torch.manual_seed(0)
    index, g, gradients = torch.arange(200) % 3, torch.randn(200, 576), set()
    for _ in range(20):
        x = torch.zeros(3, 576, requires_grad=True)
        index_select_fp32_grad(x, index).backward(g)
        assert x.grad is not None
        gradients.add(x.grad.numpy().tobytes())
    assert len(gradients) == 1
