"""Write a model's folder again with other tensors: one tensor at a time, shard by shard, and everything else copied."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from weitiao.core.architecture import Architecture
from weitiao.core.compressor import Compression, LinearLayer, Subject
from weitiao.core.errors import ModelError
from weitiao.core.files import share_weights, write_text
from weitiao.core.messages import Message

SINGLE_FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
COPIED = (".json", ".txt", ".jinja", ".model", ".tiktoken")  # configs, tokenizers, templates; no pickles, no READMEs
NOT_COPIED = ("verification.json", INDEX, CONFIG, "compression.json", "merge.json")


@dataclass(frozen=True)
class Sizes:
    """What a model's weights take."""

    bytes_on_disk: int
    weights: int
    """Numbers in the model: those that were left out count no more, zeros do."""
    linear_bytes: int
    linear_weights: int
    """Of the layers that were compressed."""
    zeros: int = 0
    """Of the linear layers' weights, where they are stored as they are."""

    @property
    def bits(self) -> float:
        """Bits of the files per weight, over all of the model."""
        return 8 * self.bytes_on_disk / max(self.weights, 1)

    @property
    def linear_bits(self) -> float:
        """Bits per weight of the linear layers, scales included."""
        return 8 * self.linear_bytes / max(self.linear_weights, 1)


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        ModelError: it is missing or damaged, or its weights are quantized already.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("{folder} is no model's folder: config.json: {reason}", folder=folder, reason=str(error)) from None
    if config.get("quantization_config"):
        raise ModelError("{folder} is quantized already: compress the merged model instead", folder=folder)
    return config


def model_class(config: Mapping[str, Any], folder: Path) -> type[PreTrainedModel]:
    """The class of transformers that a model was saved from.

    Raises:
        ModelError: transformers has no such class.
    """
    name = (config.get("architectures") or [""])[0]
    model_class = getattr(transformers, str(name), None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ModelError("{folder}: transformers has no model class {name!r}", folder=folder, name=name)
    return model_class


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder.

    Raises:
        ModelError: there are none, or the index names other files.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names if Path(name).name == name and (folder / name).is_file()]
        if not names or len(files) != len(names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            "{folder} has no model.safetensors, and no complete set of files in model.safetensors.index.json", folder=folder
        ) from None
    return files


def read_subject(
    folder: Path,
    architecture: Architecture,
    rows: Sequence[Sequence[int]] = (),
    track: Any = lambda items, label: iter(items),
    dtype: torch.dtype | None = None,
) -> Subject:
    """A merged model's folder as a technique sees it.

    Args:
        dtype: that weights which keep their form are stored in; None: as they are.

    Raises:
        ModelError: it cannot be read.
    """
    config, files = read_config(folder), weight_files(folder)
    cls = model_class(config, folder)
    with torch.device("meta"):
        model: Any = cls(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    stored = {name for file in files for name in _names(file)}
    dtype = dtype or next(iter(_dtypes(files[0])), torch.float32)
    linears, others = linear_layers(model, stored)
    if not linears:
        raise ModelError("{folder} has no linear layer that could be compressed", folder=folder)

    def open_model() -> PreTrainedModel:
        opened: Any = cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
        return opened.eval().requires_grad_(False)

    return Subject(folder, architecture, config, linears, others, dtype, open_model, rows, track)


def linear_layers(model: Any, stored: set[str]) -> tuple[dict[str, LinearLayer], list[str]]:
    """(the linear layers below the heads, by the name of their weight; the names of other linear layers)."""
    body, linears, others = {id(x) for x in model.base_model.modules()}, {}, []
    for name, module in model.named_modules():
        transposed = type(module).__name__ == "Conv1D"
        if not isinstance(module, torch.nn.Linear) and not transposed:
            continue
        if id(module) in body and f"{name}.weight" in stored and "pooler" not in name:
            rows, columns = module.weight.shape
            shape = (columns, rows) if transposed else (rows, columns)
            linears[f"{name}.weight"] = LinearLayer(name, shape, transposed)
        else:
            others.append(name)
    return linears, others


def _names(file: Path) -> list[str]:
    with safe_open(str(file), "pt") as stream:
        return list(stream.keys())


def _dtypes(file: Path) -> Iterator[torch.dtype]:
    """What the floating-point weights of a file are stored in, matrices first."""
    with safe_open(str(file), "pt") as stream:
        for name in sorted(stream.keys(), key=lambda x: len(stream.get_slice(x).get_shape()), reverse=True):
            first = stream.get_slice(name)[:1] if stream.get_slice(name).get_shape() else stream.get_tensor(name)
            if first.is_floating_point():
                yield first.dtype


def rewrite(subject: Subject, target: Path, compression: Compression) -> tuple[Sizes, Sizes]:
    """Write the compressed model.

    Returns:
        (sizes before, sizes after)
    """
    target.mkdir(parents=True, exist_ok=True)
    _copy_others(subject.folder, target)
    files = weight_files(subject.folder)
    weight_map: dict[str, str] = {}
    before, after = _Counter(), _Counter()
    jobs = [(file, name) for file in files for name in _names(file)]
    out: dict[str, Tensor] = {}
    for i, (file, name) in enumerate(subject.track(jobs, Message("writing"))):
        with safe_open(str(file), "pt") as stream:
            tensor = stream.get_tensor(name)
        changed = compression.change(name, tensor)
        if name in changed and changed[name].is_floating_point():
            changed[name] = changed[name].to(subject.dtype)
        linear = name in subject.linears
        before.add({name: tensor}, tensor.numel(), linear)
        after.add(changed, tensor.numel() if changed else 0, linear)
        out |= {key: x.contiguous() for key, x in changed.items()}
        if (i + 1 == len(jobs) or jobs[i + 1][0] != file) and out:
            save_file(out, target / file.name, {"format": "pt"})
            weight_map |= {key: file.name for key in out}
            out = {}
    if len(files) > 1:
        index = {"metadata": {"total_size": after.bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
    dtype = str(subject.dtype).removeprefix("torch.")
    spellings = {key: dtype for key in ("dtype", "torch_dtype") if key in subject.config}
    config = {**subject.config, **spellings, **compression.config}
    write_text(target / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    share_weights(target)
    return before.sizes(subject.folder), after.sizes(target)


class _Counter:
    """Adds up the tensors of a file."""

    def __init__(self) -> None:
        self.bytes = self.weights = self.linear_bytes = self.linear_weights = self.zeros = 0

    def add(self, tensors: Mapping[str, Tensor], weights: int, linear: bool, plain: bool = True) -> None:
        size = sum(x.numel() * x.element_size() for x in tensors.values())
        self.bytes, self.weights = self.bytes + size, self.weights + weights
        if linear and tensors:
            self.linear_bytes, self.linear_weights = self.linear_bytes + size, self.linear_weights + weights
            if plain and len(tensors) == 1:
                self.zeros += int((next(iter(tensors.values())) == 0).sum())

    def sizes(self, folder: Path) -> Sizes:
        on_disk = sum(x.stat().st_size for x in weight_files(folder))
        return Sizes(on_disk, self.weights, self.linear_bytes, self.linear_weights, self.zeros)


def _copy_others(source: Path, target: Path) -> None:
    """Configs, tokenizer and templates; of the folders of sentence-transformers' modules, their weights too."""
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        weights = file.suffix == ".safetensors" and len(relative.parts) > 1
        if not file.is_file() or len(relative.parts) > 2 or str(relative).startswith("."):
            continue
        if weights or (file.suffix in COPIED and file.name not in NOT_COPIED):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)


def zero_masks(folder: Path, names: Mapping[str, LinearLayer]) -> dict[str, Tensor]:
    """Where the linear weights in a folder are 0: name -> bool."""
    masks = {}
    for file in weight_files(folder):
        for name in _names(file):
            if name in names:
                with safe_open(str(file), "pt") as stream:
                    masks[name] = stream.get_tensor(name) == 0
    return masks


def sizes_of(folder: Path, linears: Mapping[str, LinearLayer]) -> Sizes:
    """The sizes of a folder that was not written here.

    Args:
        linears: the linear layers of the model it was made of.
    """
    shapes, counter, seen = {x.name: x.shape for x in linears.values()}, _Counter(), set()
    for file in weight_files(folder):
        with safe_open(str(file), "pt") as stream:
            for name in stream.keys():  # noqa: SIM118  it is no dict
                tensor, layer = stream.get_tensor(name), name.partition(".weight")[0]
                rows, columns = shapes.get(layer, (0, 0))
                weights = tensor.numel() if not rows else 0 if layer in seen else rows * columns
                counter.add({name: tensor}, weights, linear=bool(rows), plain=name.endswith(".weight"))
                seen.add(layer)
    return counter.sizes(folder)
