"""Gradient clipping: what is clipped, by how much, and the statistics."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from weitiao.core.optimizer import Clip
from weitiao.core.recipe_sections import Train
from weitiao.core.registry import create, names


def weights_with(*norms: float) -> dict[str, nn.Parameter]:
    """One weight for each gradient norm."""
    weights = {f"w{i}": nn.Parameter(torch.zeros(4)) for i in range(len(norms))}
    for weight, norm in zip(weights.values(), norms):
        weight.grad = torch.tensor([0.6, 0.8, 0.0, 0.0]) * norm
    return weights


def clipped(clip: Any, memory: dict[str, float], *norms: float) -> list[float]:
    """The gradient norms after clipping."""
    weights = weights_with(*norms)
    gradients = [x.grad for x in weights.values() if x.grad is not None]
    clip.clip(weights, nn.utils.get_total_norm(gradients), memory)
    return [float(x.norm()) for x in gradients]


@pytest.mark.parametrize("name", names(Clip))
def test_clips_keep_direction_and_never_grow(name: str) -> None:
    clip, memory, random = create(Clip, name), {}, torch.Generator().manual_seed(0)
    for _ in range(150):
        norms = (torch.rand(3, generator=random) * 3).tolist()
        after = clipped(clip, memory, *norms)
        assert all(b <= a * (1 + 1e-5) for a, b in zip(norms, after))


def test_max_norm_clip() -> None:
    assert clipped(create(Clip, "max_norm", max_norm=1.0), {}, 3.0, 4.0) == pytest.approx([0.6, 0.8], rel=1e-4)
    assert clipped(create(Clip, "max_norm", max_norm=1.0), {}, 0.3, 0.4) == pytest.approx([0.3, 0.4])


def test_zclip_spike() -> None:
    clip, memory = create(Clip, "zclip", max_norm=None), {}
    for i in range(100):
        norm = 1.0 + 0.1 * math.sin(i)
        assert clipped(clip, memory, norm) == pytest.approx([norm])
    mean, std = memory["mean"], math.sqrt(memory["variance"])
    z = (100.0 - mean) / std
    assert clipped(clip, memory, 100.0) == pytest.approx([mean + 2.5**2 / z * std], rel=1e-4)
    assert abs(memory["mean"] - mean) < 0.01 and math.sqrt(memory["variance"]) < 2 * std
    assert clipped(clip, memory, 50.0)[0] < 1.2, "a second spike must be seen as one too"


def test_adagc_per_tensor() -> None:
    clip, memory = create(Clip, "adagc", warmup_steps=3, max_norm=100.0), {}
    for norms in ((1.0, 10.0), (0.9, 11.0), (1.1, 12.0)):
        assert clipped(clip, memory, *norms) == pytest.approx(list(norms))
    assert clipped(clip, memory, 9.0, 10.0) == pytest.approx([1.05 * 0.9, 10.0], rel=1e-5)
    assert memory["average w0"] == pytest.approx(0.98 * 0.9 + 0.02 * 1.05 * 0.9)


def test_adagc_zero_gradient() -> None:
    """A fresh LoRA's A has no gradient at the first step."""
    clip, memory = create(Clip, "adagc", warmup_steps=2), {}
    for norm in (0.0, 0.0, 0.0, 0.5):
        assert clipped(clip, memory, norm) == pytest.approx([norm])
    assert memory["average w0"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (2, {"name": "max_norm", "max_norm": 2.0}),
        (None, None),
        ("adagc", {"name": "adagc", "lambda_rel": 1.05, "beta": 0.98, "warmup_steps": 100, "max_norm": 1.0}),
        (
            {"name": "zclip", "z_threshold": 3},
            {"name": "zclip", "z_threshold": 3.0, "alpha": 0.97, "warmup_steps": 25, "max_norm": 1.0},
        ),
    ],
)
def test_clip_recipe_forms(written: Any, read: Any) -> None:
    train = Train(max_grad_norm=written)
    assert train.model_dump(mode="json")["max_grad_norm"] == read
    assert Train(**train.model_dump(mode="json")) == train


@pytest.mark.parametrize("wrong", [0, -1, "zlcip", {"max_norm": 2}, True])
def test_invalid_clip_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_grad_norm"):
        Train(max_grad_norm=wrong)
