"""Every optimizer part goes downhill, says what it says it does, and goes on from where it was saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from weitiao.core.recipe import Train
from weitiao.core.registry import find, names
from weitiao.train.checkpoint import commit, load_newest, snapshot
from weitiao.train.optimizers.lion import Lion
from weitiao.train.optimizers.stable_adamw import StableAdamW
from weitiao.train.plan import Plan, make_optimizer
from weitiao.train.state import State

OPTIMIZERS = names("optimizer")


def make(name: str, weights: list[Tensor], rate: float = 1e-2, decay: float = 0.0) -> torch.optim.Optimizer:
    part: Any = find("optimizer", name)()
    return part.make([{"params": weights, "lr": rate, "weight_decay": decay}])


def test_all_are_found() -> None:
    assert {"adam", "adamw", "lion", "sgd"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bowl_is_walked_down(name: str) -> None:
    torch.manual_seed(0)
    weight, goal = torch.nn.Parameter(torch.randn(5, 3)), torch.randn(5, 3)
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
def test_decay_alone_shrinks_the_weights(name: str) -> None:
    weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
    optimizer = make(name, [weight], rate=1e-2, decay=0.5)
    for _ in range(10):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert float(weight.detach().max()) < 2.0
    if name in ("adamw", "lion"):  # decoupled: w (1 - rate decay)^10, whatever the gradient
        assert float(weight.detach()[0, 0]) == pytest.approx(2.0 * (1 - 1e-2 * 0.5) ** 10, rel=1e-5)


def test_lion_is_algorithm_2() -> None:
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


def test_stable_adamw_is_algorithm_2() -> None:
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


def test_stable_adamw_slows_down_where_adamw_would_not() -> None:
    moved = {}
    for name in ("adamw", "stable_adamw"):
        weight = torch.nn.Parameter(torch.zeros(4))
        optimizer = find("optimizer", name)(betas=(0.9, 0.99)).make(  # pyright: ignore[reportAttributeAccessIssue]
            [{"params": [weight], "lr": 0.01, "weight_decay": 0.0}]
        )
        for i in range(101):
            weight.grad = torch.full((4,), 100.0 if i == 100 else (1.0 if i % 2 else -1.0))
            before = weight.detach().clone()
            optimizer.step()
        moved[name] = float((weight.detach() - before).norm())
    assert moved["stable_adamw"] < 0.25 * moved["adamw"]


def test_adamw_takes_a_first_step_as_long_as_the_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = make("adamw", [weight], rate=0.01)
    weight.grad = torch.tensor([5.0, -0.001, 100.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.01, 0.01, -0.01]), rtol=1e-3, atol=0)


def test_a_weight_without_a_gradient_stays() -> None:
    for name in OPTIMIZERS:
        moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        moved.grad = torch.ones(2)
        make(name, [moved, still], decay=0.1).step()
        assert torch.equal(still.detach(), torch.ones(2)) and not torch.equal(moved.detach(), torch.ones(2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_memory_survives_saving(name: str, open_tunable: Any, tmp_path: Any) -> None:
    model = open_tunable({"name": "lora", "rank": 2, "target_modules": ["q_proj"]})
    settings = Train(optimizer=name, weight_decay=0.1)  # pyright: ignore
    plan = Plan(settings, 10, 1e-2, 0, 0)
    state = State(model, make_optimizer(model, plan))

    def walk(steps: int) -> list[Tensor]:
        for _ in range(steps):
            sum((p - torch.randn(p.shape)).pow(2).sum() for p in model.trainable().values()).backward()  # pyright: ignore
            state.optimizer.step()
            state.optimizer.zero_grad()
        return [p.detach().clone() for p in model.trainable().values()]

    walk(3)
    commit(tmp_path, snapshot(state, {}), keep=1)
    wanted = walk(3)
    state.optimizer = make_optimizer(model, plan)
    load_newest(tmp_path, state, {}, print)
    assert all(torch.equal(a, b) for a, b in zip(walk(3), wanted, strict=True))


def test_matrices_decay_and_vectors_do_not(open_tunable: Any, tiny_folders: dict) -> None:
    model = open_tunable({"name": "full"}, base=tiny_folders["qwen2"])
    optimizer = make_optimizer(model, Plan(Train(weight_decay=0.1), 10, 1e-3, 0, 0))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.1, 0.0}
    assert all(p.ndim >= 2 for p in groups[0.1]) and all(p.ndim < 2 for p in groups[0.0])
    assert sum(map(len, groups.values())) == len(model.trainable())
