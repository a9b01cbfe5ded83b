"""A form is compared with its Run: the true one passes; every way of serving something else is refused with its figure."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import weitiao as weitiao_api
from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.errors import ModelError
from weitiao.core.reporter import Reporter
from weitiao.deploy.verification.verify import BARS, Bar
from weitiao.pipeline import merging, verification

DESK = Reporter(Console(quiet=True))


@pytest.fixture
def run(train_tiny: Any) -> Any:
    return train_tiny(train={"learning_rate": 1e-2, "steps": 12})


@pytest.fixture
def merged(run: Any, tmp_path: Path) -> Path:
    merging.merge_run(str(run.folder), str(tmp_path / "merged"))
    return tmp_path / "merged"


def report_of(run: Any, form: Path, **options: Any) -> Any:
    return verification.verify_run(str(run.folder), str(form), DESK, **options)


def change_weights(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def test_merged_folder_passes_and_says_so(run: Any, merged: Path) -> None:
    report = report_of(run, merged)
    assert report.passed and report.kind == "fp32" and report.bar == BARS["fp32"]
    assert report.fidelity.agreement.value == 1 and report.fidelity.max_logit_difference <= 1e-4
    assert report.template.conversations == report.template.equal > 10
    assert report.change.applied == pytest.approx(1, abs=1e-3) and report.change.trained > 1e-3
    assert not report.missing_stops and "held out" in str(report.lines[0])
    record = json.loads((merged / "verification.json").read_text())
    assert record["passed"] and record["positions"] == report.fidelity.positions > 20
    readme = (merged / "README.md").read_text()
    assert readme.count("## Compared with the run it was made of") == 1, "a second comparison replaces the first"


def test_adapter_folder_passes(run: Any) -> None:
    report = report_of(run, run.folder / "adapter")
    assert report.passed and report.fidelity.max_logit_difference <= 1e-4


def test_base_served_instead_of_the_adapter_is_refused(run: Any, merged: Path, tiny_llama: Path) -> None:
    shutil.copy(tiny_llama / "model.safetensors", merged / "model.safetensors")
    report = report_of(run, merged)
    assert abs(report.change.applied) < 1e-3
    with pytest.raises(ModelError, match="it has -?0% of what training changed: the adapter was not applied"):
        report.check()
    assert "NOT the model that was trained" in (merged / "README.md").read_text()


def test_adapter_of_zeros_is_refused(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run.folder / "adapter", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: x * (0 if "lora_B" in k else 1) for k, x in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="of what training changed: the adapter was not applied"):
        report_of(run, folder).check()


def test_wrong_scale_is_refused(run: Any, tmp_path: Path) -> None:
    """alpha / rank forgotten: the change is there, but four times too small."""
    folder = tmp_path / "adapter"
    shutil.copytree(run.folder / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] / 4}))
    report = report_of(run, folder)
    assert 0.1 < report.change.applied < 0.5 and not report.passed


def test_changed_weight_is_refused_with_its_figure(run: Any, merged: Path) -> None:
    def change(weights: dict) -> None:
        weights["model.layers.0.mlp.up_proj.weight"] *= 1.05

    change_weights(merged, change)
    with pytest.raises(ModelError, match=r"a logit differs by \S+, at most 3e-03 is asked"):
        report_of(run, merged).check()


def test_nan_is_refused(run: Any, merged: Path) -> None:
    change_weights(merged, lambda weights: weights["model.norm.weight"].fill_(torch.nan))
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        report_of(run, merged)


def test_other_template_is_refused(run: Any, merged: Path) -> None:
    file = merged / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(ModelError, match="its chat template gives other token ids in .*in training, .* here"):
        report_of(run, merged).check()


def test_missing_stop_is_refused(run: Any, merged: Path) -> None:
    file = merged / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 7}))
    with pytest.raises(ModelError, match="answers end with .*im_end.*, which does not stop it"):
        report_of(run, merged).check()


def test_run_that_changed_nothing_is_refused(train_tiny: Any, tmp_path: Path) -> None:
    run = train_tiny(train={"steps": 1, "learning_rate": 1e-30})
    with pytest.raises(ModelError, match="training changed nothing: the run answers as its base model"):
        merging.merge_run(str(run.folder), str(tmp_path / "out"))


def test_few_rows_are_judged_by_their_interval(run: Any, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One near-tie among 20 tokens does not refuse a form whose bar is 99 %."""
    few = report_of(run, merged, max_rows=3)
    assert few.fidelity.rows == 3
    one_off = type(few.fidelity.agreement)("agreement", 0.95, 20, 0.76, 0.991)
    object.__setattr__(few.fidelity, "agreement", one_off)
    few.bar = Bar(0.99)
    from weitiao.deploy.verification.verify import failures_of

    assert not failures_of(few)
    few.bar = Bar(0.995)
    assert "95.00% of the most probable tokens are the same" in str(failures_of(few)[0])


def test_files_of_the_run_are_gone(run: Any, merged: Path, chat_file: Path) -> None:
    chat_file.unlink()
    report = report_of(run, merged)
    assert report.passed and str(report.rows_of) == "a probe text" and report.template is None


def test_nothing_that_can_be_opened(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is nothing that can be compared.*Forms: .*peft, transformers"):
        report_of(run, tmp_path)


def test_command(run: Any, merged: Path) -> None:
    code, text = weitiao("verify", run.folder, merged)
    assert code == 0 and "is the model that was trained" in text and "KL" in text
    change_weights(merged, lambda weights: weights["model.norm.weight"].mul_(1.3))
    code, text = weitiao("verify", run.folder, merged, "--max-rows", 4)
    assert code == 2 and "is not the tuned model" in text


# -- memory and files -------------------------------------------------------------------------------------------------


def test_shards_and_both_spellings(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merging.merge_run(str(run.folder), str(out), max_shard_size="50KB")
    assert (out / "model.safetensors.index.json").is_file() and len(list(out.glob("*.safetensors"))) > 2
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert AutoModelForCausalLM.from_pretrained(out).config.rope_parameters == config["rope_parameters"]
    assert not list(tmp_path.glob(".weitiao-*")), "what was recorded is deleted"


TAGS = [
    {"tokens": ["the", "fox", "is", "in", "paris"][:n] + ["dog"], "tags": ["O", "B-X", "O", "O", "B-Y"][:n] + ["B-X"]}
    for n in (1, 2, 3, 4, 5, 2, 3, 5)
]
CLASSES = [{"text": text, "label": label} for text, label in (("the quick fox", "a"), ("lazy dog", "b"))] * 6
PAIRS = [{"query": "the quick fox", "document": "brown fox"}, {"query": "lazy dog", "document": "dog"}] * 4
HEADS = {"token_classification": TAGS, "classification": CLASSES, "embedding": PAIRS}


@pytest.mark.parametrize("objective", HEADS)
def test_runs_with_heads_are_compared_by_their_predictions(objective: str, train_tiny: Any, tmp_path: Path) -> None:
    base = save_model(tmp_path / "bert", "bert")
    data = write_jsonl(tmp_path / "rows.jsonl", HEADS[objective])
    settings = {"base": str(base), "data": [{"path": str(data)}], "validation": 0, "objective": objective}
    run = train_tiny(**settings, train={"steps": 3, "learning_rate": 1e-2}, evaluate={"metrics": "auto", "samples": 0})
    merged = weitiao_api.merge(run, tmp_path / "merged").folder
    report = weitiao_api.verify(run, merged)
    report.check()
    assert report.passed and report.agreement.value == 1 and report.agreement.n >= 8 and report.max_difference <= 1e-4
    code, said = weitiao("verify", run.folder, merged)
    assert code == 0 and "is the model that was trained" in said
    change_weights(merged, lambda weights: [x.add_(0.3 * torch.randn_like(x)) for x in weights.values() if x.dim() == 2])
    with pytest.raises(ModelError, match="predicts otherwise than the tuned one"):
        weitiao_api.verify(run, merged).check()
    with pytest.raises(ModelError, match="is compared as a merged folder"):
        weitiao_api.verify(run, tmp_path)
