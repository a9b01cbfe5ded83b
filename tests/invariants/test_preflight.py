"""The preflight steps find what a healthy-looking curve hides, with every method, and change nothing."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from support.models import ENCODER_DECODERS, save_model
from support.parts import VARIANTS, make_objective, method_config
from support.rows import write_jsonl
from support.runs import assert_same_run, run_contents
from weitiao.core.errors import CheckError
from weitiao.core.finding import Finding
from weitiao.core.method import Method
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.registry import names
from weitiao.core.reporter import Reporter
from weitiao.model.adapters.low_rank import LowRankLinear
from weitiao.objective.objectives.sft import SFT
from weitiao.pipeline import train as pipeline


def checked(plain: dict, **changes: object) -> dict[str, Finding]:
    """Findings by name; errors are not raised."""
    every = [*("supervision", "stop_token", "packing", "loss", "gradients", "frozen", "restored")]
    recipe: Recipe = make_recipe({**plain, **changes})
    return {x.name: x for x in pipeline.check(recipe, Reporter(Console(quiet=True)), every)}


@pytest.mark.parametrize("method", (*names(Method), *VARIANTS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_passes_preflight(method: str, precision: str, recipe_dict: dict) -> None:
    train = {**recipe_dict["train"], "precision": precision}
    found = checked(recipe_dict, method=method_config(method), train=train)
    assert {name for name, x in found.items() if x.level == "error"} == set(), found
    assert {"packing", "loss", "gradients", "frozen", "restored"} <= found.keys()


@pytest.mark.parametrize("family", ["t5", "bart", "distilbert"])
def test_fp32_last_layer_passes_in_bf16(family: str, recipe_dict: dict, tmp_path: Path) -> None:
    """Autocast runs norms in fp32; what came before them was rounded all the same."""
    texts = [("the fox " + "jumps " * (i % 5), "over " * (1 + i % 3)) for i in range(16)]
    wrote = [{"source": text, "target": more} for text, more in texts]
    rows = wrote if family in ENCODER_DECODERS else [{"text": text, "label": more} for text, more in texts]
    changes = {
        "base": str(save_model(tmp_path / family, family)),
        "data": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "objective": make_objective("seq2seq").as_recipe() if family in ENCODER_DECODERS else "classification",
        "method": "full",
        "train": {**recipe_dict["train"], "precision": "bf16"},
    }
    found = pipeline.check(make_recipe({**recipe_dict, **changes}), Reporter(Console(quiet=True)))
    assert "packing" in {x.name for x in found if x.level == "fine"}


def test_run_unchanged_by_preflight(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"method": {"dropout": 0.2}, "train": {"steps": 6}}
    one = run_contents(train_tiny(**shape, out=str(tmp_path / "one")))
    monkeypatch.setattr(pipeline, "preflight", lambda *_: [])
    assert_same_run(one, run_contents(train_tiny(**shape, out=str(tmp_path / "two"))))


def test_trained_weight_without_gradient_refused(recipe_dict: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that is trained but not used: the loss falls all the same, thanks to the others."""
    real = LowRankLinear.forward
    lost: list[LowRankLinear] = []

    def forward(self: LowRankLinear, x: torch.Tensor) -> torch.Tensor:
        lost[:] = lost or [self]
        return self.base_layer(x) if self is lost[0] else real(self, x)

    monkeypatch.setattr(LowRankLinear, "forward", forward)
    assert checked(recipe_dict)["gradients"].level == "error"
    lost.clear()
    with pytest.raises(CheckError, match="2 of .* trained tensors got no gradient"):
        pipeline.train(make_recipe(recipe_dict), Reporter(Console(quiet=True)))


def test_wrong_loss_refused(recipe_dict: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels shifted once too often: the curve looks healthy, the model learns to look two tokens ahead."""
    right = SFT.segment_losses
    monkeypatch.setattr(
        SFT, "segment_losses", lambda self, model, batch: [(1.5 * a, n) for a, n in right(self, model, batch)]
    )
    assert checked(recipe_dict)["loss"].level == "error"


def test_moving_frozen_weight_refused(recipe_dict: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *words: object) -> object:
        moved[0].base_layer.weight.data.add_(1e-3)
        return real(self, *words)

    moved: list[LowRankLinear] = []
    made = LowRankLinear.__init__
    monkeypatch.setattr(LowRankLinear, "__init__", lambda self, *a, **k: (made(self, *a, **k), moved.append(self))[0])
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    assert checked(recipe_dict)["frozen"].level == "error"


@pytest.mark.parametrize("method, steps", [("full", 1), ("lora", 2)])
def test_preflight_ends_when_all_weights_had_gradients(method: str, steps: int, recipe_dict: dict) -> None:
    """LoRA's A has none while B is zero."""
    assert str(checked(recipe_dict, method=method)["gradients"].message).endswith(f"by preflight step {steps}")
