"""Attention by matrix products equals the textbook formula: values, gradients, masks, blocks, rows with a shared prefix."""

import math
from typing import Any

import pytest
import torch

from weitiao.core.batch import Batch, pack
from weitiao.core.shared_prefix import PrefixSharedBatch, share_prefixes
from weitiao.model.layers import attention_cpu
from weitiao.model.layers.attention import attend
from weitiao.model.layers.attention_cpu import attend_by_matmul, query_blocks, query_blocks_at

HEADS, KEYS, WIDE = 6, 2, 8


def textbook(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, causal: bool, window: int | None):
    """Row by row, head by head, in double precision."""
    if isinstance(batch, PrefixSharedBatch):
        q, k, v = (x[batch.token_index] for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    parts = []
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        back = torch.arange(b - a)[:, None] - torch.arange(b - a)
        hidden = (back < 0) if causal else torch.zeros_like(back, dtype=torch.bool)
        hidden = hidden | (back.abs() >= (window or b - a))
        scores = torch.einsum("nhd,thd->hnt", q[a:b], k[a:b]) / math.sqrt(WIDE)
        parts.append(torch.einsum("hnt,thd->nhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v[a:b]))
    y = torch.cat(parts)
    return y[batch.first_position] if isinstance(batch, PrefixSharedBatch) else y


def ours_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, causal: bool = True, window: int | None = None
):
    return attend_by_matmul(q, k, v, query_blocks(batch, HEADS), WIDE**-0.5, causal, window)


def rows(lengths: tuple[int, ...], prefix: int = 0) -> Batch:
    ids = [[*range(prefix), *range(100 * (i + 1), 100 * (i + 1) + n - prefix)] for i, n in enumerate(lengths)]
    return share_prefixes(pack([{"input_ids": x, "labels": x} for x in ids]))


def three(batch: Batch, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(len(batch.input_ids), n, WIDE, dtype=torch.double).to(dtype) for n in (HEADS, KEYS, KEYS)]


def results(function: Any, inputs: list[torch.Tensor], *more: Any) -> list[torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, *more)
    return [y.detach(), *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).sin()).sum(), inputs)]


CASES = [
    ((9, 5, 5, 5, 1), 0, True, None),
    ((9, 5, 5, 5, 1), 0, False, None),
    ((30, 20, 20), 0, True, 4),
    ((30, 20, 20), 0, False, 4),
    ((30, 20, 20, 7), 6, True, None),
    ((30, 20, 20, 7), 6, True, 4),
    ((9, 9, 9, 9), 9, True, None),
]


@pytest.mark.parametrize("block", [256, 7])
@pytest.mark.parametrize(("lengths", "prefix", "causal", "window"), CASES)
def test_cpu_attention_equals_reference(
    lengths: tuple[int, ...], prefix: int, causal: bool, window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision to the last digits; in blocks of a few queries, too."""
    monkeypatch.setattr(attention_cpu, "BLOCK", block)
    batch = rows(lengths, prefix)
    assert isinstance(batch, PrefixSharedBatch) == bool(prefix)
    inputs = three(batch, torch.double)
    ours = results(ours_of, inputs, batch, causal, window)
    for a, b in zip(ours, results(textbook, inputs, batch, causal, window)):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("block", [256, 2])
@pytest.mark.parametrize(("lengths", "prefix", "causal", "window"), CASES)
def test_cpu_attention_subset_of_queries(
    lengths: tuple[int, ...], prefix: int, causal: bool, window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_cpu, "BLOCK", block)
    batch = rows(lengths, prefix)
    inputs = three(batch, torch.double)
    tokens = torch.tensor([0, 3, 4, 8, 8])  # the last one twice, as a backbone pads
    ours = results(
        lambda q, k, v: attend_by_matmul(q[tokens], k, v, query_blocks_at(batch, tokens), WIDE**-0.5, causal, window),
        inputs,
    )
    for a, b in zip(ours, results(lambda *x: textbook(*x, batch, causal, window)[tokens], inputs)):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_equal_lengths_batched_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows((10, 10, 10, 10, 10, 3))
    assert [x.num_rows for x in query_blocks(batch, HEADS)] == [5, 1]
    monkeypatch.setattr(attention_cpu, "MAX_SCORES", 2 * HEADS * 10 * 10)
    blocks = query_blocks(batch, HEADS)
    assert [x.num_rows for x in blocks] == [2, 2, 1, 1] and [x.queries for x in blocks] == [
        (0, 20),
        (20, 20),
        (40, 10),
        (50, 3),
    ]


@pytest.mark.parametrize("causal", [True, False])
def test_bf16_rounding_error(causal: bool) -> None:
    """Held to double precision on the same rounded numbers, with large scores."""
    batch = rows((40, 33, 20, 20))
    q, k, v = three(batch, torch.bfloat16)
    inputs = [q * 8, k, v]
    ours = results(ours_of, inputs, batch, causal)
    true = results(textbook, [x.double() for x in inputs], batch, causal, None)
    for a, b in zip(ours, true):
        assert (a.double() - b).norm() <= 0.005 * b.norm()


def test_fp32_stays_fp32() -> None:
    batch, previous = rows((40, 33, 20, 20)), torch.backends.mkldnn.matmul.fp32_precision
    results(ours_of, three(batch, torch.bfloat16), batch)
    assert torch.backends.mkldnn.matmul.fp32_precision == previous, "the setting is restored"
    inputs = three(batch, torch.float32)
    for a, b in zip(results(ours_of, inputs, batch), results(textbook, [x.double() for x in inputs], batch, True, None)):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_cpu_attention_chosen_for_bf16_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], attend_by_matmul
    monkeypatch.setattr("weitiao.model.layers.attention.attend_by_matmul", lambda *x: (calls.append(1), real(*x))[1])
    for dtype, window, times in ((torch.float32, None, 0), (torch.float32, 4, 1), (torch.bfloat16, None, 1)):
        for batch in (rows((20, 9, 9)), rows((20, 9, 9), prefix=5)):
            calls.clear()
            inputs = three(batch, dtype)
            y = attend(*inputs, batch, window=window)
            assert len(calls) == times
            torch.testing.assert_close(
                y.double(), textbook(*(x.double() for x in inputs), batch, True, window), rtol=0.02, atol=0.02
            )
