"""Weights that are read a piece at a time make the model that transformers makes."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from weitiao.core.errors import ModelError
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.loading import weights
from weitiao.model.loading.load import AUTO_CLASSES, load_base, load_generation
from weitiao.pipeline.load import open_base_assets


def auto_class(config: Any) -> Any:
    architecture = architecture_of(config)
    return AUTO_CLASSES[architecture.kind, architecture.modality]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_same_model(tiny_models: dict, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(weights, "CHUNK", 1000)  # so that there are many
    seen = 0
    for folder in tiny_models.values():
        config = AutoConfig.from_pretrained(folder)
        loaded = weights.load_in_chunks(auto_class(config), Path(folder), config, dtype, "sdpa")
        if loaded is None:
            continue
        seen += 1
        given = {"dtype": dtype, "attn_implementation": "sdpa", "output_loading_info": True}
        (theirs, said), (mine, info) = auto_class(config).from_pretrained(folder, **given), cast(tuple[Any, dict], loaded)
        assert type(mine) is type(theirs) and info == said and not mine.training
        ours, wanted = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == wanted.keys()
        for x in ours.keys() - info["missing_keys"]:  # a pooler begins at random
            assert ours[x].dtype == wanted[x].dtype and torch.equal(ours[x], wanted[x])
        for x, y in zip(mine.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(x, y)
    assert seen > len(tiny_models) / 2


def split_in_two(folder: Path, there: Path) -> Path:
    """The same model in two files with an index, next to a file that is not part of it."""
    there.mkdir()
    (there / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({x: whole[x] for x in some}, there / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {x: file for file, some in parts.items() for x in some}}
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"nothing": torch.ones(2)}, there / "consolidated.safetensors")
    return there


def test_sharded_weights(tiny_models: dict, tmp_path: Path) -> None:
    folder = Path(tiny_models["llama"])
    two = split_in_two(folder, tmp_path / "split")
    assert [x.name for x in weights.safetensors_files(two)] == ["model-1.safetensors", "model-2.safetensors"]
    one, other = (load_base(x, torch.float32, torch.device("cpu")).model.state_dict() for x in (folder, two))
    assert one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)


@pytest.mark.parametrize("harm", ["cut", "empty", "a part is missing"])
def test_damaged_weights_refused(tiny_models: dict, tmp_path: Path, harm: str) -> None:
    folder = split_in_two(Path(tiny_models["llama"]), tmp_path / "split")
    part = folder / "model-2.safetensors"
    whole = part.read_bytes()
    if harm == "a part is missing":
        part.unlink()
    else:
        part.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(folder, torch.float32, torch.device("cpu"))


MAPS = ("null", "{}", '{"a": 1}', '{"a": "../elsewhere.safetensors"}')


@pytest.mark.parametrize("index", ["[]", "{", "null", *(f'{{"weight_map": {x}}}' for x in MAPS)])
def test_damaged_index_refused(tiny_models: dict, tmp_path: Path, index: str) -> None:
    folder = split_in_two(Path(tiny_models["llama"]), tmp_path / "split")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="index.json is damaged"):
        load_base(folder, torch.float32, torch.device("cpu"))


ODD_STOPS = (*(f'{{"eos_token_id": {x}}}' for x in ('"x"', "2.5", "true", "[[2]]", '{"a": 1}')), "[" * 100_000)


@pytest.mark.parametrize("settings", ["{", "[]", "null", *ODD_STOPS])
def test_damaged_generation_config_refused(tiny_models: dict, tmp_path: Path, settings: str) -> None:
    folder = split_in_two(Path(tiny_models["llama"]), tmp_path / "split")
    (folder / "generation_config.json").write_text(settings)
    with pytest.raises(ModelError, match="generation_config.json cannot be read"):
        load_generation(folder)


@pytest.mark.parametrize("apart", [True, False])
def test_generation_config_read_as_transformers(tiny_models: dict, tmp_path: Path, apart: bool) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(tiny_models["llama"], folder)
    (folder / "generation_config.json").unlink()
    settings = {"do_sample": True, "temperature": 0.4, "eos_token_id": [5, 6]}
    config = json.loads((folder / "config.json").read_text())
    if apart:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    else:
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
    model: Any = load_base(folder, torch.float32, torch.device("cpu")).model
    theirs = AutoModelForCausalLM.from_pretrained(folder).generation_config.to_dict()
    mine = model.generation_config.to_dict()
    assert {x: mine[x] for x in settings} == settings == {x: theirs[x] for x in settings}
    assert {x: mine.get(x) for x in theirs if not x.startswith("_")} == {x: y for x, y in theirs.items() if x[0] != "_"}
    assert {5, 6} <= set(open_base_assets(str(folder)).processor.stop_ids), "what weitiao writes ends there, too"


def test_missing_weight_named(tiny_models: dict, tmp_path: Path) -> None:
    folder = split_in_two(Path(tiny_models["llama"]), tmp_path / "split")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {x: f for x, f in index["weight_map"].items() if f == "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lacks .* weights"):
        load_base(folder, torch.float32, torch.device("cpu"))
