"""`base:` may name a run: a method on top of it equals a method on top of the run's merged model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.command import weitiao
from support.models import CHATML, make_tokenizer, save_model
from support.parts import method_config
from weitiao.core.errors import ModelError, RecipeError, RunError, WeitiaoError
from weitiao.core.events import Step
from weitiao.core.method import Method
from weitiao.core.registry import find, names
from weitiao.pipeline import inference as results
from weitiao.pipeline import merging
from weitiao.pipeline.load import load_stacked_base, open_base_assets
from weitiao.pipeline.trained import read_trained

METHODS = names(Method)
CPU = torch.device("cpu")


def weights(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "best" / "weights.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("upper", ["lora", "full", "prompt_tuning"])
def test_run_as_base_equals_merged_run(train_tiny: Any, tmp_path: Path, precision: str, upper: str) -> None:
    """The base weights, and all that is trained on them."""
    train = {"precision": precision, "steps": 2}
    lower = train_tiny(train=train)
    merging.merge_run(str(lower.folder), str(tmp_path / "merged"))
    on_run = train_tiny(train=train, method=upper, base=str(lower.folder), out=str(tmp_path / "a"))
    on_folder = train_tiny(train=train, method=upper, base=str(tmp_path / "merged"), out=str(tmp_path / "b"))
    assert same(weights(on_run), weights(on_folder))
    losses = [[x.loss for x in run.events(Step)] for run in (on_run, on_folder)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_as_base_or_refused(train_tiny: Any, tmp_path: Path, method: str) -> None:
    """What was folded in memory is the model that `merge` writes; a method that cannot be folded says so."""
    lower = train_tiny(method=method_config(method), train={"steps": 1})
    tokens = open_base_assets(str(lower.folder))
    try:
        base = load_stacked_base(tokens.folder, tokens.base_chain, Method.untouched(), torch.float32, CPU, tokens.processor)
    except ModelError as refused:
        assert f"method {method} cannot be merged into the base weights" in str(refused)
        with pytest.raises(ModelError, match="this method cannot be merged; use the run folder"):
            merging.merge_run(str(lower.folder), str(tmp_path / "merged"))
        return
    merging.merge_run(str(lower.folder), str(tmp_path / "merged"), "fp32")
    plain = open_base_assets(str(tmp_path / "merged"))
    merged = load_stacked_base(plain.folder, plain.base_chain, Method.untouched(), torch.float32, CPU, plain.processor)
    assert plain.base_chain == () and same(base.model.state_dict(), merged.model.state_dict())
    assert not any(x.requires_grad for x in base.model.parameters())
    first = load_stacked_base(tokens.folder, (), Method.untouched(), torch.float32, CPU, tokens.processor)
    assert not same(base.model.state_dict(), first.model.state_dict()), "the base run has learned nothing"


def test_three_runs_stacked(train_tiny: Any, tmp_path: Path) -> None:
    """It is opened, measured, merged and stood on again; the plan says what it stands on."""
    a = train_tiny(train={"steps": 1})
    b = train_tiny(train={"steps": 1}, base=str(a.folder), method="ia3", out=str(tmp_path / "b"))
    c = train_tiny(train={"steps": 1}, base=str(b.folder), out=str(tmp_path / "c"))
    told = c.decisions["base"]
    assert told.value == a.recipe.base and f"{a.folder} (lora), {b.folder} (ia3)" in str(told.reason)
    ids = torch.tensor([[5, 9, 40, 200, 17]])
    with torch.no_grad():
        opened = results.open_model(str(c.folder)).model.model(input_ids=ids).logits
        merged = merging.merge_run(str(c.folder), str(tmp_path / "merged"))
        again = results.open_model(str(merged.folder), "fp32").model.model(input_ids=ids).logits
        lower = results.open_model(str(b.folder)).model.model(input_ids=ids).logits
    torch.testing.assert_close(again, opened, rtol=1e-5, atol=1e-5)
    assert (lower - opened).abs().max() > 1e-3
    now = c.read("scores.json")
    assert now["before"]["loss"]["value"] == pytest.approx(b.read("scores.json")["after"]["loss"]["value"], rel=1e-5)


def test_adapter_folder_as_base(train_tiny: Any, tmp_path: Path) -> None:
    lower = train_tiny(train={"steps": 2})
    on_run = train_tiny(train={"steps": 1}, base=str(lower.folder), out=str(tmp_path / "a"))
    on_adapter = train_tiny(train={"steps": 1}, base=str(lower.folder / "adapter"), out=str(tmp_path / "b"))
    assert same(weights(on_run), weights(on_adapter))
    opened = results.open_model(str(on_adapter.folder / "adapter"), "fp32")
    assert len(opened.assets.base_chain) == 1, "the adapter on top says what it stands on"


def test_chat_template_inherited(train_tiny: Any, tmp_path: Path) -> None:
    base, template = save_model(tmp_path / "bare", template=None), tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    lower = train_tiny(train={"steps": 1}, base=str(base), chat_template=str(template))
    upper = train_tiny(train={"steps": 1}, base=str(lower.folder), out=str(tmp_path / "b"))
    assert open_base_assets(str(upper.folder)).tokenizer.chat_template == template.read_text()
    make_tokenizer().save_pretrained(lower.folder / "adapter")  # as TRL leaves its adapters
    assert open_base_assets(str(lower.folder / "adapter")).tokenizer.chat_template == CHATML


# -- what no longer belongs together ----------------------------------------------------------------------------------


@pytest.fixture
def pair(train_tiny: Any, tmp_path: Path) -> tuple[Any, Any]:
    """A run, and one on top of it that was interrupted."""
    lower = train_tiny(train={"steps": 2})
    upper = train_tiny(train={"steps": 4, "save_every": 2}, base=str(lower.folder), out=str(tmp_path / "upper"))
    return lower, upper


def move(run: Any) -> None:
    file = run.folder / "best" / "weights.safetensors"
    tensors = load_file(file)
    name = next(x for x in tensors if x.endswith("lora_B"))
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, file)


def test_changed_base_run_not_opened(pair: tuple, train_tiny: Any, tmp_path: Path) -> None:
    lower, upper = pair
    results.open_model(str(upper.folder))
    move(lower)
    words = "has changed since .*upper was trained on it, so the two no longer fit. Train .*upper again, or restore"
    with pytest.raises(RunError, match=words):
        results.open_model(str(upper.folder))
    with pytest.raises(RunError, match=words):
        train_tiny(base=str(upper.folder), out=str(tmp_path / "third"))


def test_changed_base_run_not_resumed(pair: tuple, train_tiny: Any, tmp_path: Path) -> None:
    lower, upper = pair
    journal = [x for x in upper.history if x["event"] != "end"]
    upper.write("events.jsonl", journal)
    move(lower)
    with pytest.raises(WeitiaoError, match="base"):
        train_tiny(again=True, train={"steps": 4, "save_every": 2}, base=str(lower.folder), out=str(upper.folder))
    with pytest.raises(RunError, match="no longer fit"):
        results.open_model(str(upper.folder))


def test_mistyped_run_path_not_searched_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert read_trained("runs/b") is None, "it may be a hub id"
    (tmp_path / "runs" / "a" / "recipe.yaml").touch()
    with pytest.raises(RunError, match="runs/b does not exist"):
        read_trained("runs/b")
    assert read_trained("Qwen/Qwen3-0.6B") is None


def test_run_without_result_refused_as_base(train_tiny: Any, tmp_path: Path) -> None:
    lower = train_tiny(train={"steps": 1})
    (lower.folder / "best" / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="has no result yet"):
        train_tiny(base=str(lower.folder), out=str(tmp_path / "b"))


def test_circular_base_refused(train_tiny: Any, tmp_path: Path) -> None:
    lower = train_tiny(train={"steps": 1})
    upper = train_tiny(train={"steps": 1}, base=str(lower.folder), out=str(tmp_path / "b"))
    shutil.rmtree(lower.folder)
    upper.folder.rename(lower.folder)
    with pytest.raises(ModelError, match="is its own base. Was it renamed since it was trained?"):
        train_tiny(base=str(lower.folder), out=str(tmp_path / "c"))


def test_adapter_without_base_refused(train_tiny: Any, tmp_path: Path) -> None:
    config = train_tiny(train={"steps": 1}).folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="has no base_model_name_or_path; write the folder or id of its base model there"):
        results.open_model(str(config.parent))


def test_method_with_own_loading_refused(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = train_tiny(train={"steps": 1})
    tokens = open_base_assets(str(lower.folder))
    odd = Method.untouched()
    monkeypatch.setattr(type(odd), "load_options", lambda self: {"quantization_config": {}})
    with pytest.raises(RecipeError, match="so the base cannot be a run. Merge it first .weitiao merge .*run --out FOLDER"):
        load_stacked_base(tokens.folder, tokens.base_chain, odd, torch.float32, CPU, tokens.processor)
    assert read_trained(str(lower.folder)) == tokens.base_chain[0] and find(Method, "lora") is type(
        tokens.base_chain[0].method
    )


def test_unfinished_base_run_reported(train_tiny: Any, tmp_path: Path) -> None:
    lower = train_tiny(train={"steps": 3})
    journal = lower.folder / "events.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"end"' not in line))
    upper = train_tiny(train={"steps": 1}, base=str(lower.folder), out=str(tmp_path / "upper"))
    assert "killed at step 3; the result is step" in str(upper.decisions["base"].reason)
    for command in (["evaluate", lower.folder], ["merge", lower.folder, tmp_path / "merged"]):
        code, output = weitiao(*command)
        assert code == 0 and "is not finished: killed at step 3; the result is step" in " ".join(output.split())
    code, output = weitiao("evaluate", lower.folder, "--json")
    assert code == 0 and json.loads(output)["loss"]["n"] > 0


def test_changed_base_model_not_opened(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """Other weights of the same shape under the same name would give garbage that merging even finds equal to itself."""
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    lower = train_tiny(train={"steps": 1}, base=str(base), out=str(tmp_path / "lower"))
    upper = train_tiny(train={"steps": 1}, base=str(lower.folder), out=str(tmp_path / "upper"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 1.01
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    for run in (lower, upper):
        with pytest.raises(RunError, match=f"base has changed since {lower.folder} was trained on it"):
            results.open_model(str(run.folder))
    with pytest.raises(RunError, match="base has changed since"):
        merging.merge_run(str(lower.folder), str(tmp_path / "merged"))
