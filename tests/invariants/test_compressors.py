"""Laws of every technique in deploy/compressors/: its result opens, says what it costs, and its source is untouched."""

import json
import py_compile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM

from support.compression import digests, wide_run
from weitiao.core.compressor import Compressor
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.registry import find, names
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.deploy.compression.report import CompressionReport
from weitiao.pipeline.compression import CompressionOptions, compress, compressor_of
from weitiao.pipeline.inference import open_model

QUIET = Reporter(Console(quiet=True))
HERE = [x for x in names("compressor") if find(Compressor, x).result != "command"]
ELSEWHERE = [x for x in names("compressor") if find(Compressor, x).result == "command"]
FOR_ENCODERS = [x for x in HERE if not find(Compressor, x).decoders_only]
SETTINGS = {"drop_layers": {"num_layers": 1}, "llm_compressor": {"scheme": "W8A16"}}
IDS = torch.tensor([[5, 9, 40, 200, 17, 17, 3, 64]])


def run(method: str, out: Path, target: str = "", **options: Any) -> CompressionReport:
    technique = compressor_of(method, SETTINGS.get(method, {}))
    return compress(target or wide_run(), str(out), technique, QUIET, CompressionOptions(**options))


def test_techniques_listed() -> None:
    assert {"int8", "int4", "nf4", "magnitude", "wanda", "drop_layers"} <= set(HERE) and len(ELSEWHERE) == 2


@pytest.mark.parametrize("method", HERE)
def test_result_opens_and_reports_its_cost(method: str, tmp_path: Path) -> None:
    before = digests(wide_run())
    report = run(method, tmp_path / "out", precision="fp32")
    assert digests(wide_run()) == before, "the Run was changed"
    assert [x.name for x in tmp_path.iterdir()] == ["out"], "temporary folders are left"
    merged, small = report.before, report.after
    assert merged and small and merged.fidelity and small.fidelity
    assert merged.fidelity.agreement.value == 1.0 and small.fidelity.positions == merged.fidelity.positions > 20
    assert 0 <= small.fidelity.kl.value < 5 and {"loss", "accuracy"} <= small.scores.keys()
    assert all(score.n > 0 and score.low <= score.value <= score.high for score in small.scores.values())
    if find(Compressor, method).result == "quantized":
        assert small.sizes.bytes_on_disk < merged.sizes.bytes_on_disk and small.memory < merged.memory
        assert small.sizes.linear_bits < {"int8": 9, "int4": 4.7, "nf4": 6.1}[method]  # nf4: tables in each tiny layer
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["method"]["name"] == method and record["after"]["positions"] == small.fidelity.positions
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| {label} | {a} | {b} |" in readme for label, a, b in report.lines) and len(report.lines) > 10
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, local_files_only=True)
    ours = open_model(str(tmp_path / "out"), "fp32")
    with torch.no_grad():
        expected, got = plain(input_ids=IDS).logits.float(), ours.torch_model(input_ids=IDS).logits
    # bitsandbytes computes in bf16, as its config says
    tolerance = 5e-2 if method == "nf4" else 1e-5
    assert float((got - expected).abs().max() / expected.abs().max()) <= tolerance
    assert isinstance(ours.generate("what time is it"), str)


@pytest.mark.parametrize("method", HERE)
def test_same_files_every_time(method: str, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        run(method, folder, precision="fp32")
    first, second = ({x: y for x, y in digests(folder).items() if x.endswith("safetensors")} for folder in folders)
    assert first and first == second


@pytest.mark.parametrize("method", names("compressor"))
def test_unknown_setting_refused(method: str) -> None:
    with pytest.raises(RecipeError, match="has no setting 'sparcity'"):
        compressor_of(method, {"sparcity": 0.5})


@pytest.mark.parametrize("method", FOR_ENCODERS)
def test_classifier_keeps_its_classes(method: str, tmp_path: Path) -> None:
    if find(Compressor, method).reads_rows:
        pytest.skip("calibrated on decoders' rows in the law above")
    report = run(method, tmp_path / "out", wide_run("bert"), precision="fp32")
    assert report.before and report.after and report.after.scores["accuracy"].n > 5
    plain: Any = AutoModel.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        assert torch.isfinite(plain(input_ids=IDS).last_hidden_state).all()


@pytest.mark.parametrize("method", [x for x in names("compressor") if x not in FOR_ENCODERS])
def test_encoder_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is for decoders"):
        run(method, tmp_path / "out", wide_run("bert"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ELSEWHERE)
def test_command_for_another_environment(method: str, tmp_path: Path) -> None:
    report = run(method, tmp_path / "out")
    folder = tmp_path / "out"
    assert report.after is None and "README.md" in str(report.notes[0])
    py_compile.compile(str(folder / "compress.py"), cfile=str(tmp_path / "c.pyc"), doraise=True)
    rows = [json.loads(x)["input_ids"] for x in (folder / "calibration.jsonl").read_text().splitlines()]
    trained_on = Run(Path(wide_run())).read("resolved.json")["data"]["rows"]
    assert len(rows) == trained_on > 30 and all(len(x) > 3 for x in rows)
    assert "pip install -r requirements.txt" in (folder / "README.md").read_text()
    assert not [x for x in folder.rglob("*") if x.suffix in (".bin", ".pt", ".pkl", ".pickle")]
    AutoModelForCausalLM.from_pretrained(folder / "merged", local_files_only=True)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_healed_zeros_stay(method: str, tmp_path: Path) -> None:
    report = run(method, tmp_path / "out", heal=2, precision="fp32")
    assert report.after and report.after.sizes.zeros >= 0.49 * report.after.sizes.linear_weights
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as stream:
        weight = stream.get_tensor("model.layers.1.mlp.up_proj.weight")
    assert ((weight == 0).sum(1) == weight.shape[1] // 2).all()
