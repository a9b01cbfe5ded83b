"""The official converter is the judge: tensor bytes and metadata are equal.

It is not published as a library. WEITIAO_GGUF_CONVERTER names its folder: vendor/llama.cpp of the source distribution of
llama-cpp-python (pip download --no-deps --no-binary :all: llama-cpp-python).
"""

# ruff: noqa: E501

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from support.llama_cpp import make_known, save_decoder
from weitiao.deploy.export.gguf import vocabulary
from weitiao.deploy.export.gguf.adapter import write_adapter
from weitiao.deploy.export.gguf.write import write_model

FOLDER = os.environ.get("WEITIAO_GGUF_CONVERTER", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="WEITIAO_GGUF_CONVERTER does not name the official converter's folder")
OURS = {"general.name", "general.quantized_by", "general.size_label", "GGUF.kv_count"}
ALWAYS_WRITTEN = {"tokenizer.ggml.add_bos_token"}  # the converter leaves it to llama.cpp's defaults


def run_converter(script: str, *arguments: str) -> None:
    """The converter with this table of pre-tokenizers, so that it knows the tiny tokenizer."""
    code = (
        "import json, runpy, sys; sys.path.insert(0, sys.argv[1]); from conversion.base import TextModel\n"
        "table = json.load(open(sys.argv[2]))\n"
        "TextModel.get_vocab_base_pre = lambda self, tokenizer: next(iter(table.values()))\n"
        "path = sys.argv[1] + '/' + sys.argv[3]; sys.argv = sys.argv[3:]; runpy.run_path(path, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, FOLDER, str(vocabulary.PRE_TOKENIZERS), script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def contents(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(file)
    tensors = {x.name: (x.tensor_type.name, x.shape.tolist(), x.data.tobytes()) for x in reader.tensors}
    return tensors, {key: x.contents() for key, x in reader.fields.items() if key not in OURS}


@pytest.mark.parametrize(
    ("family", "file_type"),
    [("llama", "f32"), ("mistral", "bf16"), ("qwen2", "f16"), ("qwen3", "q8_0"), ("gpt2", "f16"), ("llama", "q8_0")],
)
def test_model_is_that_of_the_official_converter(
    family: str, file_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_decoder(tmp_path / "model", family)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    make_known(monkeypatch, tmp_path, tokenizer)
    if family == "gpt2":  # the converter wants a key that transformers 5 does not write
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "n_ctx": config["n_positions"]}))
    write_model(folder, tmp_path / "ours.gguf", file_type, tokenizer, (tokenizer.eos_token_id,), "x")
    judged = tmp_path / "theirs.gguf"
    run_converter("convert_hf_to_gguf.py", str(folder), "--outfile", str(judged), "--outtype", file_type)
    (ours, keys), (theirs, expected) = contents(tmp_path / "ours.gguf"), contents(judged)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    different = {key for key in keys.keys() | expected.keys() if keys.get(key) != expected.get(key)}
    assert {key for key in different if key in expected} == set()  # all that it writes is equal
    assert different <= ALWAYS_WRITTEN


def test_adapter_is_that_of_the_official_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_decoder(tmp_path / "model", "llama")
    make_known(monkeypatch, tmp_path, AutoTokenizer.from_pretrained(folder))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    torch.manual_seed(0)
    shapes = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 16), "mlp.down_proj": (48, 32)}
    tensors = {}
    for name, (width, height) in shapes.items():
        stem = f"base_model.model.model.layers.1.{name}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = torch.randn(4, width), torch.randn(height, 4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [x.split(".")[1] for x in shapes]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    write_adapter(adapter, folder, tmp_path / "ours.gguf", "x")
    judged = tmp_path / "theirs.gguf"
    run_converter("convert_lora_to_gguf.py", str(adapter), "--base", str(folder), "--outfile", str(judged))
    (ours, keys), (theirs, expected) = contents(tmp_path / "ours.gguf"), contents(judged)
    assert ours == theirs
    assert {key for key in expected if keys.get(key) != expected[key]} <= {"general.quantization_version", "general.base_model.count"} | {
        key for key in expected if key.startswith("general.base_model") or key in ("general.type", "general.finetune", "general.basename")
    }  # fmt: skip
    assert keys["adapter.lora.alpha"] == expected["adapter.lora.alpha"] and keys["general.type"] == expected["general.type"]
