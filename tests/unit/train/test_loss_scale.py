"""The loss scale of fp16: no row is lost to an overflow, and other non-finite losses leave the scale as it is."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from weitiao.core import hardware
from weitiao.core.events import Skip, Step
from weitiao.train.stability import loss_scale
from weitiao.train.stability.loss_scale import LossScale
from weitiao.train.step import StepResult


def half_precision(weight: nn.Parameter, gradient: float, loss: float = 1.0) -> Callable[[float], StepResult]:
    """A step whose gradient goes through fp16, and is infinite above 65,504."""

    def compute(scale: float) -> StepResult:
        weight.grad = (torch.tensor([gradient, 0.0]) * scale).half().float()
        return StepResult(loss, 2, 1)

    return compute


def test_overflow_halves_scale() -> None:
    weight, scale = nn.Parameter(torch.zeros(2)), LossScale.starting_at(65536)
    result, norm = scale.compute_gradients(half_precision(weight, 12.0), [weight])
    assert scale.scale == 4096 and float(norm) == 12.0 and weight.grad is not None and weight.grad.tolist() == [12, 0]
    assert result.notes == {"loss_scale": 4096, "underflow": 0.5}


def test_tiny_gradient_survives() -> None:
    weight = nn.Parameter(torch.zeros(2))
    assert float(LossScale().compute_gradients(half_precision(weight, 1e-9), [weight])[1]) == 0.0
    assert float(
        LossScale.starting_at(65536).compute_gradients(half_precision(weight, 1e-9), [weight])[1]
    ) == pytest.approx(1e-9, rel=1e-3)


@pytest.mark.parametrize(("gradient", "loss"), [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_persistent_non_finite_keeps_scale(gradient: float, loss: float) -> None:
    weight, scale = nn.Parameter(torch.zeros(2)), LossScale.starting_at(1024)
    result, norm = scale.compute_gradients(half_precision(weight, gradient, loss), [weight])
    assert scale.scale == 1024
    assert not (math.isfinite(result.loss) and math.isfinite(float(norm)))


def test_stable_steps_double_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    weight, scale = nn.Parameter(torch.zeros(2)), LossScale.starting_at(1000)
    scales = []
    for _ in range(7):
        scale.compute_gradients(half_precision(weight, 1.0), [weight])
        scales.append(scale.scale)
    assert scales == [512, 512, 1024, 1024, 1024, 2048, 2048]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fp16_run(train_tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, method: str) -> None:
    """From a scale that must overflow: it comes down, no row is lost, and the losses are fp32's but for rounding."""
    train = {"steps": 6, "learning_rate": 1e-3, "loss_scale": 2**24}
    plain = train_tiny(method=method, train=train, out=str(tmp_path / "fp32"))
    monkeypatch.setattr(hardware, "precision", lambda expected: (torch.float16, "a test"))
    run = train_tiny(method=method, train=train, out=str(tmp_path / "fp16"))
    steps = list(run.events(Step))
    assert [x.data_step for x in steps] == list(range(1, 7)) and not list(run.events(Skip))
    assert steps[0].notes["loss_scale"] < 2**24 and all(0 <= x.notes["underflow"] < 0.5 for x in steps)
    for a, b in zip(plain.events(Step), steps):
        assert b.loss == pytest.approx(a.loss, rel=2e-3)
    assert "loss_scale" not in next(plain.events(Step)).notes
