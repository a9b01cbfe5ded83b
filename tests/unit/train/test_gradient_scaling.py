"""Gradient scaling of the embedding and the lowest layers; the forward pass is unchanged."""

from typing import Any

import pytest
import torch

from support.laws import attached
from support.rows import batch_of, make_rows
from weitiao.core.errors import RecipeError
from weitiao.core.events import Step
from weitiao.core.recipe_sections import GradientScale
from weitiao.core.trainable_model import layer_of
from weitiao.train.stability.gradient_scaling import scale_gradients


def gradients(settings: GradientScale, method: str = "full", family: str = "gpt2") -> tuple[float, dict[str, torch.Tensor]]:
    model, batch = attached(method, family), batch_of(make_rows())
    scale_gradients(model.model, settings)
    loss = -model.logprobs(batch).sum()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_gradient_scaling_lowest_layers(family: str) -> None:
    loss, plain = gradients(GradientScale(), family=family)
    same, shrunk = gradients(GradientScale(num_layers=2, layers=0.25), family=family)
    assert loss == same
    for name, gradient in plain.items():
        layer = layer_of(name)
        factor = 0.25 if layer is not None and layer < 2 else 1.0
        torch.testing.assert_close(shrunk[name], gradient * factor, rtol=1e-5, atol=1e-7)
    assert {layer_of(name) for name in plain} == {None, 0, 1, 2}


def test_gradient_scaling_embedding_not_tied_head() -> None:
    """GPT-2's head is its embedding: only the share that comes through the input is smaller."""
    (_, plain), (_, none), (_, shrunk) = (gradients(GradientScale(embedding=alpha)) for alpha in (1.0, 1e-9, 0.1))
    name = "transformer.wte.weight"
    torch.testing.assert_close(shrunk[name], none[name] + 0.1 * (plain[name] - none[name]), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(plain[name], none[name], rtol=1e-2)
    others = [x for x in plain if x != name]
    assert all(torch.equal(plain[x], shrunk[x]) for x in others)


def test_gradient_scaling_in_run(train_tiny: Any, tmp_path: Any) -> None:
    """The first step's gradient is shorter, its loss the same; there is nothing to save."""
    train = {"steps": 3, "learning_rate": 1e-3}
    plain = next(train_tiny(method="full", train=train, out=str(tmp_path / "plain")).events(Step))
    settings = {"embedding": 0.1, "layers": 1}
    first = next(
        train_tiny(method="full", train={**train, "gradient_scale": settings}, out=str(tmp_path / "shrunk")).events(Step)
    )
    assert first.loss == plain.loss and first.grad_norm < plain.grad_norm


@pytest.mark.parametrize("settings", [GradientScale(embedding=0.1), GradientScale(num_layers=1)])
def test_gradient_scaling_nothing_to_scale_refused(settings: GradientScale) -> None:
    method = (
        {"settings": {}, "method": "lora"}
        if settings.embedding < 1
        else {"settings": {"num_layers": 1}, "method": "freeze"}
    )
    model = attached(method["method"], **method["settings"])
    with pytest.raises(RecipeError, match="remove this setting"):
        scale_gradients(model.model, settings)
