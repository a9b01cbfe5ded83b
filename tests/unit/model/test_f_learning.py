"""Forgetting is exact arithmetic on the base, what it stands on stays with the Run, and a wrong old run is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from support.models import save_model
from support.runs import finished_run
from weitiao.core.errors import RecipeError
from weitiao.core.events import Step
from weitiao.core.method import Method
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import reference_logits
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model as open_run

PLAIN = {"name": "lora", "rank": 4, "alpha": 8.0}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An old run of the test's own."""
    return Path(shutil.copytree(finished_run(), tmp_path / "old"))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.replace("base_layer.", ""): p.detach().clone() for name, p in model.named_parameters() if "lora" not in name
    }


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("rate", [0.3, 1.5])
def test_base_minus_task_vector(
    kind: str, rate: float, old: Path, train_tiny: Any, tmp_path: Path, open_model: Any
) -> None:
    if kind == "full":
        old = train_tiny(method="full", out=str(tmp_path / "whole"), train={"learning_rate": 1e-3}).folder
    base = weights(open_model(dict(PLAIN)).model)
    trained = open_run(str(old)).model
    trained.attachment.merge()
    merged, left = (
        weights(trained.model),
        weights(open_model({"name": "f_learning", "forget_run": str(old), "forget_lambda": rate, "method": PLAIN}).model),
    )
    moved = [name for name in base if not torch.equal(base[name], merged[name])]
    assert moved and all(torch.equal(left[name], base[name]) == (name not in moved) for name in base)
    for name in moved:
        expected = base[name].double() - rate * (merged[name].double() - base[name].double())
        assert torch.allclose(left[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_training_starts_as_without_forgetting(old: Path, open_model: Any) -> None:
    """So that one can be held against the other: the same seed, the same random A."""
    one, other = open_model(dict(PLAIN)), open_model({"name": "f_learning", "forget_run": str(old), "method": PLAIN})
    assert all(torch.equal(x, other.trainable()[name]) for name, x in one.trainable().items())


@pytest.mark.parametrize("method", [PLAIN, "full"])
def test_run_independent_of_old_run(method: Any, old: Path, train_tiny: Any) -> None:
    settings = {"name": "f_learning", "forget_run": str(old), "forget_lambda": 0.7, "method": method}
    run = train_tiny(method=settings, train={"learning_rate": 1e-3})
    after = run.read("scores.json")["after"]["loss"]["value"]
    shutil.rmtree(old)
    assert evaluate(str(run.folder), Reporter(Console(quiet=True)))["loss"].value == pytest.approx(after, rel=1e-6)
    opened = open_run(str(run.folder))
    prompt = opened.model.processor.text("what time is it")
    with opened.model.reference(), torch.no_grad():
        base = reference_logits(opened.model, prompt)
    true = open_run(str(run.recipe.base), precision=run.recipe.train.precision)
    assert torch.equal(base, reference_logits(true.model, prompt)), "switched off it is the true base"


def test_before_score_of_original_base(old: Path, train_tiny: Any, tmp_path: Path) -> None:
    plain = train_tiny(method=PLAIN, out=str(tmp_path / "plain"))
    forgot = train_tiny(
        method={"name": "f_learning", "forget_run": str(old), "forget_lambda": 1.5, "method": PLAIN},
        out=str(tmp_path / "forgot"),
    )
    before = [run.read("scores.json")["before"]["loss"]["value"] for run in (plain, forgot)]
    assert before[0] == before[1]
    first = [next(run.events(Step)).loss for run in (plain, forgot)]
    assert abs(first[0] - first[1]) > 1e-3


def test_changed_old_run_refused(old: Path, recipe_dict: dict, train_tiny: Any, tmp_path: Path) -> None:
    settings = make_recipe({**recipe_dict, "method": {"name": "f_learning", "forget_run": str(old)}}).method.as_recipe()
    assert len(settings["sha256"]) == 64
    file = old / "best" / "weights.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].view(-1)[0] += 1e-3
    save_file(tensors, file)
    with pytest.raises(RecipeError, match="is not the run this recipe was made with"):
        train_tiny(method=settings)
    assert (
        make_recipe({**recipe_dict, "method": {**settings, "sha256": ""}}).method.as_recipe()["sha256"]
        != settings["sha256"]
    )


def test_tampered_copy_refused(old: Path, train_tiny: Any) -> None:
    run = train_tiny(method={"name": "f_learning", "forget_run": str(old), "method": PLAIN})
    copied = run.folder / "task_vector.safetensors"
    raw = bytearray(copied.read_bytes())
    raw[-3] ^= 1
    copied.write_bytes(raw)
    with pytest.raises(RecipeError, match="is not the run this recipe was made with"):
        open_run(str(run.folder))


def test_other_base_refused(old: Path, train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match="that run was trained from another base model"):
        train_tiny(base=str(other), method={"name": "f_learning", "forget_run": str(old)})
    with pytest.raises(RecipeError, match="that run was trained from another base model"):
        train_tiny(
            base=str(save_model(tmp_path / "gpt2", "gpt2")),
            method={"name": "f_learning", "forget_run": str(old)},
            out=str(tmp_path / "g"),
        )


def test_invalid_old_run_refused(old: Path, recipe_dict: dict, train_tiny: Any, tmp_path: Path) -> None:
    recipe_with = lambda **more: make_recipe({**recipe_dict, "method": {"name": "f_learning", **more}})  # noqa: E731
    with pytest.raises(RecipeError, match="forget_run is missing"):
        recipe_with()
    with pytest.raises(RecipeError, match="is not a run whose result can be read"):
        recipe_with(forget_run=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="cannot contain itself"):
        recipe_with(forget_run=str(old), method={"name": "f_learning", "forget_run": str(old)})
    lines = [x for x in (old / "events.jsonl").read_text().splitlines() if json.loads(x)["event"] != "end"]
    (old / "events.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecipeError, match="is not finished"):
        recipe_with(forget_run=str(old))
    stuck = train_tiny(method={"name": "adapter", "bottleneck": 2}, out=str(tmp_path / "adapter"))
    with pytest.raises(RecipeError, match="adapter cannot be merged into the base"):
        train_tiny(method={"name": "f_learning", "forget_run": str(stuck.folder)}, out=str(tmp_path / "x"))


def test_bf16_base_rounded_once(old: Path, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    f_learning: Any = create(Method, "f_learning", forget_run=str(old), forget_lambda=0.7)
    exact, half = (AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16) for _ in range(2))
    exact.float()
    for model in (exact, half):
        f_learning.attach(model)
    a, b = weights(exact), weights(half)
    assert all(torch.equal(a[name].bfloat16(), b[name]) for name in a)


def test_no_adapter_for_changed_base(old: Path, train_tiny: Any) -> None:
    run = train_tiny(method={"name": "f_learning", "forget_run": str(old), "method": PLAIN})
    assert not (run.folder / "adapter").exists()
