"""Two levels: each learns from its own rows only, and the second-order gradient is the derivative it claims to be."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear

from weitiao.core.batch import IGNORE, Batch, pack, select_segments
from weitiao.core.method import UpperLevel
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.model.adapters import low_rank
from weitiao.train.distributed import Distributed
from weitiao.train.steps import accumulate, bilevel

SFT: Any = create(Objective, "sft")
ALONE = Distributed(torch.device("cpu"))
SMALL = {"name": "bilora", "rank": 3, "alpha": 6.0, "target_modules": ["q_proj", "down_proj"], "upper_fraction": 0.4}


def rows(count: int, seed: int = 0) -> list[Any]:
    random = torch.Generator().manual_seed(seed)
    encoded = []
    for i in range(count):
        ids, labels = (torch.randint(3, 320, (3 + i % 4,), generator=random).tolist() for _ in range(2))
        encoded.append({"input_ids": ids, "labels": [IGNORE, *labels[1:]]})
    return encoded


@pytest.fixture
def opened(open_model: Any, perturb_weights: Any) -> Any:
    """opened(**settings) -> a bilora whose every weight does something."""
    return lambda **settings: perturb_weights(open_model({**SMALL, **settings}))


def parts(window: list[Batch], upper: UpperLevel) -> list[list[Batch]]:
    by_level: list[list[Batch]] = [[], []]
    for batch in window:
        for i, row in enumerate(batch.row_ids):
            by_level[upper.holds(row)].append(select_segments(batch, [i]))
    return by_level


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}


def mean_loss(model: Any, window: list[Batch]) -> torch.Tensor:
    return sum(SFT.loss(model, x).totals["sft"] for x in window) / sum(SFT.counts(x)["sft"] for x in window)


@pytest.mark.parametrize("share", [0.1, 0.2, 1 / 3, 0.5])
def test_level_shares_of_rows(share: float) -> None:
    upper = UpperLevel(frozenset(), share)
    held = np.array([upper.holds(row) for row in range(2000)])
    assert held.mean() == pytest.approx(share, abs=0.002)
    worst = max(abs(held[i : i + 100].mean() - share) for i in range(1900))
    assert worst <= 0.04, "rows that stand together in a file are parted as evenly as all"
    every_third = [held[i::3].mean() for i in range(3)]
    assert every_third == pytest.approx([share] * 3, abs=0.01), "nor do they follow a file that goes in turns"


def test_subset_of_segments_is_batch() -> None:
    every = rows(5)
    batch = pack(every, range(10, 15))
    subset = select_segments(batch, [3, 1])
    packed = pack([every[batch.row_ids[3] - 10], every[batch.row_ids[1] - 10]], [batch.row_ids[3], batch.row_ids[1]])
    where = [packed.row_ids.index(row) for row in subset.row_ids]
    for i, j in enumerate(where):
        a, b = subset.bounds[i : i + 2], packed.bounds[j : j + 2]
        for key in ("input_ids", "position_ids", "labels"):
            assert torch.equal(getattr(subset, key)[a[0] : a[1]], getattr(packed, key)[b[0] : b[1]])


def test_each_level_uses_its_rows(opened: Any) -> None:
    """First order: by hand, the gradient of each part's own mean; the loss told is all rows', as every method's is."""
    model, window = opened(regularization=0.0), [pack(rows(6), range(6)), pack(rows(5, 1), range(6, 11))]
    upper = model.attachment.upper
    result = bilevel.compute_gradients(model, SFT, window, ALONE)
    got, expected = gradients(model), {}
    for held, part in enumerate(parts(window, upper)):
        model.model.zero_grad()
        mean_loss(model, part).backward()
        expected |= {name: g for name, g in gradients(model).items() if (name in upper.names) == bool(held)}
    assert got.keys() == expected.keys() == model.trainable().keys()
    for name, g in expected.items():
        assert (got[name] - g).norm() <= 1e-5 * g.norm(), name
    model.model.zero_grad()
    plain = accumulate.compute_gradients(model, SFT, window, ALONE)
    assert (result.tokens, result.supervised_tokens) == (plain.tokens, plain.supervised_tokens)
    assert result.loss == pytest.approx(plain.loss, rel=1e-6)
    low, up = (float(mean_loss(model, part)) for part in parts(window, upper))
    assert (result.notes["lower_loss"], result.notes["upper_loss"]) == pytest.approx((low, up), rel=1e-5)


@pytest.mark.parametrize("values", ["softmax", "real", "binary"])
def test_second_order_gradient_equals_derivative(opened: Any, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of L_up(v - x dL_low/dv(l), l) by l, as autograd finds it through the step, without any difference."""
    unroll, window = 0.5, [pack(rows(8), range(8))]
    model, simple = (opened(values=values, unroll=x) for x in (unroll, 0.0))
    upper, weights = model.attachment.upper, model.trainable()
    before = {name: p.detach().clone() for name, p in weights.items()}
    for one in (model, simple):
        bilevel.compute_gradients(one, SFT, window, ALONE)
    assert all(torch.equal(p, before[name]) for name, p in weights.items()), "weights are not restored bit-exactly"
    got, first = gradients(model), gradients(simple)

    low_rows, up_rows = parts(window, upper)
    lower = {name: p for name, p in weights.items() if name not in upper.names}
    upper_weights = {name: p for name, p in weights.items() if name in upper.names}
    plain = lambda x, layers: [linear(x, y.weight, y.bias) + y.scale * (x @ y.a.T) @ y.b.T for y in layers]  # noqa: E731
    monkeypatch.setattr(low_rank, "lora_linear", plain)
    with sdpa_kernel(SDPBackend.MATH):  # ours and the others have no second derivative
        low = textbook_loss(model, low_rows, {}) + model.attachment.penalty()
        steps = torch.autograd.grad(low, list(lower.values()), create_graph=True)
        moved = {name: p - unroll * step for (name, p), step in zip(lower.items(), steps)}
        up = textbook_loss(model, up_rows, moved) + model.attachment.penalty()
        derivative = dict(zip(upper_weights, torch.autograd.grad(up, list(upper_weights.values()))))
    for name, g in derivative.items():
        assert (got[name] - g).norm() <= 1e-4 * g.norm(), name
        assert (first[name] - g).norm() > 1e-2 * g.norm(), "without the second order it would be another one"
    for name in lower:
        assert torch.equal(got[name], first[name]), "the lower level's is the same either way"


def textbook_loss(model: Any, window: list[Batch], other: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of transformers' own forward pass, with other weights in some places."""
    total, count = torch.zeros(()), 0
    for batch in window:
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            out = torch.func.functional_call(model.model, other, kwargs={"input_ids": batch.input_ids[None, a:b]})
            labels = batch.labels[a:b]
            total = total + cross_entropy(out.logits[0], labels, ignore_index=IGNORE, reduction="sum")
            count += int((labels != IGNORE).sum())
    return total / count


@pytest.mark.parametrize("unroll", [0.0, 0.1])
@pytest.mark.parametrize("missing", ["lower", "upper"])
def test_level_without_rows_unchanged(opened: Any, missing: str, unroll: float) -> None:
    """Not by momentum, not by weight decay, not by the penalty: its weights and its moments keep every bit."""
    model = opened(unroll=unroll)
    upper = model.attachment.upper
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2, weight_decay=0.1)
    bilevel.compute_gradients(model, SFT, [pack(rows(8), range(8))], ALONE)
    optimizer.step()
    optimizer.zero_grad()
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    moments = {n: {k: x.clone() for k, x in optimizer.state[p].items()} for n, p in model.trainable().items()}
    left = [i for i in range(20) if upper.holds(i) == (missing == "lower")]
    result = bilevel.compute_gradients(model, SFT, [pack(rows(len(left)), left)], ALONE)
    assert f"{missing}_loss" not in result.notes and result.loss > 0
    optimizer.step()
    for name, p in model.trainable().items():
        resting = (name in upper.names) == (missing == "upper")
        assert torch.equal(p, before[name]) == resting, name
        for key, x in optimizer.state[p].items():
            assert torch.equal(x, moments[name][key]) == resting, (name, key)


def test_second_order_gradient_independent_of_micro_batches(opened: Any) -> None:
    """A difference of gradients in fp32 has their rounding over its reach: 1e-3 here, where the first order has 1e-6."""
    expected = []
    for sizes in ((8,), (4, 4), (1,) * 8, (5, 1, 2)):
        model, at, window = opened(unroll=0.5), 0, []
        for size in sizes:
            window.append(pack(rows(8)[at : at + size], range(at, at + size)))
            at += size
        bilevel.compute_gradients(model, SFT, window, ALONE)
        expected.append(gradients(model))
    for other in expected[1:]:
        for name, g in expected[0].items():
            assert (other[name] - g).norm() <= 1e-3 * g.norm(), name


def test_loss_scale_scales_gradients(opened: Any) -> None:
    """fp16's loss scale goes through both orders."""
    window = [pack(rows(8), range(8))]
    for unroll in (0.0, 0.5):
        expected = []
        for scale in (1.0, 1024.0):
            model = opened(unroll=unroll)
            bilevel.compute_gradients(model, SFT, window, ALONE, scale)
            expected.append({name: g / scale for name, g in gradients(model).items()})
        for name, g in expected[0].items():
            assert (expected[1][name] - g).norm() <= 1e-3 * g.norm(), name


def test_binary_regularizer(opened: Any) -> None:
    model = opened(values="binary", regularization=1.0)
    upper_weights = {name: p for name, p in model.trainable().items() if name in model.attachment.upper.names}
    with torch.no_grad():
        for p in upper_weights.values():
            p.copy_(torch.tensor([0.5, -0.5, 0.2]))
    model.attachment.penalty().backward(inputs=list(upper_weights.values()))
    assert all(torch.equal(p.grad.sign(), -p.sign()) for p in upper_weights.values()), "descent goes away from 1/2"
