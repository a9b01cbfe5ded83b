"""Every optimizer minimizes, follows its formula, and continues from its saved state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.core.recipe_sections import Train
from weitiao.core.registry import create, names
from weitiao.train.checkpoints.checkpoint import commit, load_newest, snapshot
from weitiao.train.checkpoints.state import State
from weitiao.train.optimizers import adamw_8bit
from weitiao.train.optimizers.adafactor import Adafactor
from weitiao.train.optimizers.adamw_8bit import AdamW8bit
from weitiao.train.optimizers.lion import Lion
from weitiao.train.optimizers.stable_adamw import StableAdamW
from weitiao.train.settings import Plan, make_optimizer

OPTIMIZERS = names(Optimizer)


def make(name: str, weights: list[Tensor], rate: float = 1e-2, decay: float = 0.0) -> torch.optim.Optimizer:
    part: Any = create(Optimizer, name)
    return part.make([{"params": weights, "lr": rate, "weight_decay": decay}])


def test_every_optimizer_found() -> None:
    assert {"adafactor", "adam", "adamw", "adamw_8bit", "lion", "sgd"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(5, 3), (70, 61)], ids=str)  # the larger one is kept in eight bits where one can
def test_minimizes_quadratic(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, goal = torch.nn.Parameter(torch.randn(shape)), torch.randn(shape)
    optimizer = make(name, [weight])
    losses = []
    for _ in range(400):
        loss = (weight - goal).pow(2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_weights(name: str) -> None:
    weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
    optimizer = make(name, [weight], rate=1e-2, decay=0.5)
    for _ in range(10):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert float(weight.detach().max()) < 2.0
    if name in ("adafactor", "adamw", "adamw_8bit", "lion"):  # decoupled: w (1 - rate decay)^10, whatever the gradient
        assert float(weight.detach()[0, 0]) == pytest.approx(2.0 * (1 - 1e-2 * 0.5) ** 10, rel=1e-5)


def test_lion_equals_algorithm_2() -> None:
    rate, decay, b1, b2 = 0.01, 0.1, 0.9, 0.99
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7))
    by_hand, momentum = weight.detach().clone(), torch.zeros(7)
    optimizer = Lion(betas=(b1, b2)).make([{"params": [weight], "lr": rate, "weight_decay": decay}])
    for _ in range(5):
        gradient = torch.randn(7)
        weight.grad = gradient.clone()
        optimizer.step()
        by_hand = by_hand - rate * (torch.sign(b1 * momentum + (1 - b1) * gradient) + decay * by_hand)
        momentum = b2 * momentum + (1 - b2) * gradient
        torch.testing.assert_close(weight.detach(), by_hand, rtol=1e-6, atol=1e-7)


def test_stable_adamw_equals_algorithm_2() -> None:
    rate, decay, (b1, b2), eps = 0.01, 0.1, (0.9, 0.99), 1e-6
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7))
    w, m, v = weight.detach().clone(), torch.zeros(7), torch.zeros(7)
    optimizer = StableAdamW(betas=(b1, b2), epsilon=eps).make([{"params": [weight], "lr": rate, "weight_decay": decay}])
    for t in range(1, 8):
        gradient = torch.randn(7) * (50.0 if t == 6 else 1.0)
        weight.grad = gradient.clone()
        optimizer.step()
        c1, c2 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        m, v = c1 * m + (1 - c1) * gradient, c2 * v + (1 - c2) * gradient**2
        slowed = rate / max(1.0, float((gradient**2 / v.clamp(min=eps**2)).mean().sqrt()))
        w = w * (1 - slowed * decay) - slowed * m / (v.sqrt() + eps)
        torch.testing.assert_close(weight.detach(), w, rtol=1e-5, atol=1e-7)


def test_stable_adamw_update_clipping() -> None:
    moved = {}
    for name in ("adamw", "stable_adamw"):
        weight = torch.nn.Parameter(torch.zeros(4))
        optimizer = create(Optimizer, name, betas=(0.9, 0.99)).make([{"params": [weight], "lr": 0.01, "weight_decay": 0.0}])
        for i in range(101):
            weight.grad = torch.full((4,), 100.0 if i == 100 else (1.0 if i % 2 else -1.0))
            before = weight.detach().clone()
            optimizer.step()
        moved[name] = float((weight.detach() - before).norm())
    assert moved["stable_adamw"] < 0.25 * moved["adamw"]


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bit_nearest_code(signed: bool) -> None:
    values = adamw_8bit.dynamic_values(signed)
    assert len(values.unique()) == 256 and values.max() == 1 and 0 in values and bool(values.diff().gt(0).all())
    torch.manual_seed(0)
    x = torch.randn(40, 256) * torch.logspace(-9, 3, 40)[:, None]
    x = x if signed else x.square()
    key = "exp_avg" if signed else "exp_avg_sq"
    codes, scale = adamw_8bit._quantize(x.flatten(), key)
    assert codes.dtype == torch.uint8 and torch.equal(scale, x.abs().amax(1))
    off = (adamw_8bit._dequantize(codes, scale, key).view_as(x) - x).abs() / scale[:, None]
    nearest = ((x / scale[:, None])[..., None] - values).abs().amin(-1)
    assert bool((off <= 1.1 * nearest + 4e-7).all())  # bits are looked up by half-precision numbers; nought is left out


def test_eight_bit_state_only() -> None:
    large, small = torch.nn.Parameter(torch.zeros(65, 64)), torch.nn.Parameter(torch.zeros(63, 65))
    optimizer = make("adamw_8bit", [large, small])
    large.grad, small.grad = torch.ones(65, 64), torch.ones(63, 65)
    optimizer.step()
    stored = {key: (x.dtype, x.numel()) for key, x in optimizer.state[large].items()}
    codes, scales = (torch.uint8, 17 * 256), (torch.float32, 17)  # the last block is not full
    every = {"exp_avg": codes, "exp_avg_scale": scales, "exp_avg_sq": codes, "exp_avg_sq_scale": scales}
    assert stored == {"step": (torch.float32, 1), **every}
    assert {x.dtype for x in optimizer.state[small].values()} == {torch.float32}


def test_adamw_8bit_close_to_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 5 % of the way after 100 noisy steps, however the work is cut into pieces."""
    paths = {}
    for name, piece in (("adamw", 0), ("adamw_8bit", 2**19), ("adamw_8bit", 1024)):
        monkeypatch.setitem(adamw_8bit.CHUNK, "cpu", piece)
        torch.manual_seed(0)
        weight, slope = torch.nn.Parameter(torch.randn(70, 61)), torch.randn(70, 61)
        begin, optimizer = weight.detach().clone(), make(name, [weight], rate=1e-3, decay=0.1)
        for _ in range(100):
            weight.grad = slope + 0.3 * torch.randn(70, 61)
            optimizer.step()
        paths[name, piece] = weight.detach() - begin
    exact, at_once, in_pieces = paths.values()
    assert 0 < float((at_once - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(at_once, in_pieces)


def test_adamw_8bit_small_gradients() -> None:
    """Beside a large gradient, a small one's second moment would round to nought, and its weight go eight times too far."""
    weight = torch.nn.Parameter(torch.zeros(32, 256))
    optimizer = AdamW8bit().make([{"params": [weight], "lr": 1e-3, "weight_decay": 0.0}])
    for _ in range(200):
        weight.grad = torch.full((32, 256), 1e-4)
        weight.grad[:, 7] = 1.0
        optimizer.step()
    assert float(weight.detach().abs().max()) <= 200 * 1e-3 * 1.01


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_adafactor_equals_algorithms_4_and_5(relative: bool, shape: tuple[int, ...]) -> None:
    rate, decay, eps = 0.01, 0.1, 1e-30
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    w, r, c, v = weight.detach().clone(), 0.0, 0.0, 0.0
    optimizer = Adafactor(relative_step=relative).make([{"params": [weight], "lr": rate, "weight_decay": decay}])
    for t in range(1, 8):
        gradient = torch.randn(shape) * (50.0 if t == 6 else 1.0)
        weight.grad = gradient.clone()
        optimizer.step()
        b, square = 1 - t**-0.8, gradient**2 + eps
        if len(shape) > 1:
            r, c = b * r + (1 - b) * square.sum(-1, keepdim=True), b * c + (1 - b) * square.sum(-2, keepdim=True)
            v = r * c / r.sum(-2, keepdim=True)
        else:
            v = b * v + (1 - b) * square
        u = gradient / v.sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()))
        now = rate * (max(1e-3, float(w.square().mean().sqrt())) if relative else 1.0)
        w = w * (1 - now * decay) - now * u
        torch.testing.assert_close(weight.detach(), w, rtol=1e-5, atol=1e-7)


def test_adafactor_factored_state() -> None:
    weight = torch.nn.Parameter(torch.zeros(40, 30))
    optimizer = make("adafactor", [weight])
    weight.grad = torch.ones(40, 30)
    optimizer.step()
    assert sum(x.numel() for x in optimizer.state[weight].values()) == 1 + 40 + 30


def test_adamw_first_step_equals_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = make("adamw", [weight], rate=0.01)
    weight.grad = torch.tensor([5.0, -0.001, 100.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.01, 0.01, -0.01]), rtol=1e-3, atol=0)


def test_weight_without_gradient_unchanged() -> None:
    for name in OPTIMIZERS:
        moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        moved.grad = torch.ones(2)
        make(name, [moved, still], decay=0.1).step()
        assert torch.equal(still.detach(), torch.ones(2)) and not torch.equal(moved.detach(), torch.ones(2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_roundtrip(name: str, open_model: Any, tmp_path: Any) -> None:
    model = open_model({"name": "full"})  # its embedding is large enough to be kept in eight bits
    settings = Train(optimizer=name, weight_decay=0.1)
    plan = Plan(settings, 10, 1e-2, 0, 0)
    state = State(model, make_optimizer(model, plan))

    def walk(steps: int) -> list[Tensor]:
        for _ in range(steps):
            sum((p - torch.randn(p.shape)).pow(2).sum() for p in model.trainable().values()).backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
        return [p.detach().clone() for p in model.trainable().values()]

    walk(3)
    commit(tmp_path, snapshot(state, {}), keep=1)
    expected = walk(3)
    state.optimizer = make_optimizer(model, plan)
    load_newest(tmp_path, state, {}, print)
    assert all(torch.equal(a, b) for a, b in zip(walk(3), expected, strict=True))


def test_weight_decay_on_matrices_only(open_model: Any, tiny_models: dict) -> None:
    model = open_model({"name": "full"}, base=tiny_models["qwen2"])
    optimizer = make_optimizer(model, Plan(Train(weight_decay=0.1), 10, 1e-3, 0, 0))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.1, 0.0}
    assert all(p.ndim >= 2 for p in groups[0.1]) and all(p.ndim < 2 for p in groups[0.0])
    assert sum(map(len, groups.values())) == len(model.trainable())
