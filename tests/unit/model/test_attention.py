"""Attention stays within segments and equals the textbook formula."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from weitiao.core.batch import Batch, pack
from weitiao.model.layers.attention import _attend, _attend_at_cuda, attend

H, D = 4, 8


def batch_of(lengths: list[int]) -> Batch:
    return pack([{"input_ids": [1] * n, "labels": [1] * n} for n in lengths])


def qkv(tokens: int, kv_heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, H, D), (tokens, kv_heads, D), (tokens, kv_heads, D))
    q, k, v = (torch.randn(shape, generator=random, requires_grad=True) for shape in shapes)
    return q, k, v


def eager(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, window: int | None = None, cap: float | None = None):
    """One segment [t, H, d], token by token, as the papers write it."""
    out = torch.zeros_like(q)
    repeat = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            first = max(0, t - window + 1) if window else 0
            scores = k[first : t + 1, h // repeat] @ q[t, h] * (scale or D**-0.5)
            scores = cap * torch.tanh(scores / cap) if cap else scores
            out[t, h] = scores.softmax(0) @ v[first : t + 1, h // repeat]
    return out


def by_segment(batch: Batch, q: Tensor, k: Tensor, v: Tensor, **more) -> Tensor:
    return torch.cat([eager(q[a:b], k[a:b], v[a:b], **more) for a, b in zip(batch.bounds, batch.bounds[1:])])


LENGTHS = [[7], [5, 5, 5], [9, 4, 4, 2, 1], [1, 1]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "more",
    [{}, {"scale": 0.31}, {"window": 3}, {"window": 1}, {"window": 50}, {"softcap": 1.5}, {"softcap": 1.5, "window": 2}],
)
def test_attention_equals_reference_per_segment(lengths: list[int], kv_heads: int, more: dict) -> None:
    batch = batch_of(lengths)
    q, k, v = qkv(batch.tokens, kv_heads)
    plain = {("cap" if key == "softcap" else key): x for key, x in more.items()}
    with torch.no_grad():
        expected = by_segment(batch, q, k, v, **plain)
        torch.testing.assert_close(attend(q, k, v, batch, **more), expected, rtol=1e-5, atol=1e-6)


def test_attention_equals_single_rows() -> None:
    batch = batch_of([9, 4, 4, 2])
    q, k, v = qkv(batch.tokens, 2)
    weights = torch.randn(batch.tokens, H, D)
    got = torch.autograd.grad((attend(q, k, v, batch) * weights).sum(), (q, k, v))
    single_rows = []
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        row = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
        single_rows.append(scaled_dot_product_attention(*row, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    expected = torch.autograd.grad((torch.cat(single_rows) * weights).sum(), (q, k, v))
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"window": 2}, {"softcap": 2.0}])
def test_attention_isolation(more: dict) -> None:
    batch = batch_of([6, 6, 3])
    q, k, v = qkv(batch.tokens, 2)
    with torch.no_grad():
        before = attend(q, k, v, batch, **more)
        for x in (q, k, v):
            x[6:12] = torch.randn_like(x[6:12]) * 100
        after = attend(q, k, v, batch, **more)
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[12:], after[12:])
    assert not torch.equal(before[6:12], after[6:12])


def test_bidirectional_attention() -> None:
    batch = batch_of([5, 3])
    q, k, v = qkv(batch.tokens)
    with torch.no_grad():
        got = attend(q, k, v, batch, causal=False)
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * D**-0.5
            torch.testing.assert_close(got[a:b], torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[a:b]))


def test_equal_lengths_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def count(q: Tensor, *args, **more) -> Tensor:
        calls.append(tuple(q.shape))
        return scaled_dot_product_attention(q, *args, **more)

    monkeypatch.setattr("weitiao.model.layers.attention.scaled_dot_product_attention", count)
    batch = batch_of([4, 9, 4, 4, 2])
    _attend(*qkv(batch.tokens), batch, None, True, None, None, 0.0)
    assert calls == [(1, H, 9, D), (3, H, 4, D), (1, H, 2, D)]


@pytest.mark.parametrize("more", [{}, {"causal": False}, {"window": 3}, {"softcap": 1.5}])
def test_attention_subset_of_queries(more: dict) -> None:
    """On a CPU segment by segment, on a GPU with queries for all tokens: the same values and gradients."""
    batch, tokens = batch_of([9, 4, 4, 2, 1]), torch.tensor([0, 4, 8, 11, 12, 19])
    results = []
    for variant in ("all", "by segment", "in place"):
        q, k, v = qkv(batch.tokens, 2)
        if variant == "all":
            out = attend(q, k, v, batch, **more)[tokens]
        elif variant == "by segment":
            out = attend(q[tokens], k, v, batch, **more, query_tokens=tokens)
        else:
            options = (None, more.get("causal", True), more.get("window"), more.get("softcap"), 0.0)
            out = _attend_at_cuda(tokens, q[tokens], k, v, batch, *options)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for other in results[1:]:
        for ours, expected in zip(other, results[0]):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
