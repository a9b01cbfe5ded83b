"""`weitiao export`: every format of a trained Run is opened by its own engine and compared; what cannot be is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import weitiao
from support.llama_cpp import make_known, save_decoder
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.registry import names
from weitiao.deploy.export import gpu_servers
from weitiao.deploy.export.gguf import llama_cpp

ENGINES = {"gguf": "xllamacpp", "ollama": "xllamacpp", "onnx": "onnxruntime_genai", "peft": "peft"}
CASES: dict[str, dict[str, Any]] = {
    "gguf": {"type": "f32"},
    "gguf adapter": {"adapter": True},
    "ollama": {"type": "f16"},
    "ollama adapter": {"type": "f32", "adapter": True},
    "onnx": {},
    "peft": {},
    "vllm": {"type": "fp32"},
    "vllm adapter": {"adapter": True},
    "tensorrt_llm": {},
    "tensorrt_llm adapter": {"adapter": True},
}


@pytest.fixture
def run(train_tiny: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    make_known(monkeypatch, tmp_path, AutoTokenizer.from_pretrained(tiny_llama))
    return train_tiny(train={"steps": 8, "learning_rate": 3e-2})


def test_every_format_is_tried() -> None:
    assert {x.split()[0] for x in CASES} == set(names("format"))


@pytest.mark.parametrize("case", CASES)
def test_format_gives_the_answers_of_the_run(case: str, run: Any, train_tiny: Any, tmp_path: Path) -> None:
    format, settings = case.split()[0], CASES[case]
    if (package := ENGINES.get(format)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{format} is opened with {package}, which is not installed")
    out = tmp_path / "out"
    if format == "onnx":  # whose attention takes heads of a multiple of 16
        base = save_decoder(tmp_path / "base", "llama", head_dim=16)
        run = train_tiny(base=str(base), out=str(tmp_path / "wide"), train={"steps": 8, "learning_rate": 3e-2})
    report = weitiao.export(run, out, format=format, max_rows=6, **settings)
    assert report.verification is not None and report.verification.passed
    assert report.verification.fidelity.positions >= 6 and report.verification.fidelity.kl.value <= 1e-4
    change = report.verification.change
    assert change is not None and change.trained > 1e-3 and 0.98 <= change.applied <= 1.02, "the training is not in it"
    assert json.loads((out / "verification.json").read_text())["passed"]
    assert report.lines and report.written.commands
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".weitiao-")], "a temporary folder is left"


def test_without_llama_cpp_tensors_are_read_back_and_the_rest_is_said(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else real(name))
    report = weitiao.export(run, tmp_path / "out", format="gguf", type="q8_0", max_rows=2)
    assert report.verification is None
    text = " ".join(map(str, report.lines))
    assert "largest relative error" in text and "pip install 'weitiao[llamacpp]'" in text


def test_llama_cpp_listens_here_only_and_wants_its_key(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    import urllib.error
    import urllib.request

    report = weitiao.export(run, tmp_path / "out", format="gguf", max_rows=1)
    engine = llama_cpp.LlamaCpp(report.written.form, 64)  # pyright: ignore[reportArgumentType]
    try:
        address = engine.server.listening_address
        assert address.startswith("http://127.0.0.1:") and len(engine.key) >= 32
        for path, key in (("/tokenize", ""), ("/completion", "wrong"), ("/apply-template", "")):
            request = urllib.request.Request(
                address + path, b'{"content": "a", "prompt": "a"}', {"Authorization": f"Bearer {key}"}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == 401
        for path in ("/", "/slots", "/props"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(address + path)
    finally:
        engine.close()


def test_wrong_use_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    for settings, message in (
        ({"format": "ggfu"}, "no format called 'ggfu'. Did you mean 'gguf'"),
        ({"format": "onnx", "adapter": True}, "format onnx has no setting 'adapter'"),
        ({"format": "onnx", "type": "int4"}, "type: 'int4' is not possible"),
        ({"format": "ollama", "temperature": -1.0}, "temperature: -1.0 is not possible"),
    ):
        with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
            weitiao.export("nowhere", tmp_path / "out", **settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    with pytest.raises(ModelError, match="is not empty"):
        weitiao.export("nowhere", tmp_path / "full", format="gguf")
    assert (tmp_path / "full" / "a").read_text() == "mine"


ADAPTERS = {
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "r": {"r": 1024},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 4}},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_servers_read_wrongly_are_refused(case: str, tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], **ADAPTERS[case]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=f"vLLM cannot have .*{case}"):
        gpu_servers.read_adapter_settings(tmp_path, "vLLM")


def test_ranks_of_servers() -> None:
    assert [gpu_servers.max_rank(x) for x in (1, 4, 16, 17, 512)] == [1, 8, 16, 32, 512]
