"""Write a folder of safetensors as one GGUF file, a tensor at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFWriter
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from weitiao.core.errors import ModelError
from weitiao.core.version import VERSION
from weitiao.deploy.export.gguf.families import CONV1D, Family, convert, extra_tensors, family_of, write_hyperparameters
from weitiao.deploy.export.gguf.quantization import QuantizationPlan, quantize
from weitiao.deploy.export.gguf.vocabulary import read_vocabulary, write_vocabulary

Progress = Callable[[Sequence[str], str], Iterable[str]]
SUFFIXES = (".weight", ".bias")
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
UNUSED = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a model folder, read one by one."""

    files: dict[str, Path]
    """Name -> shard."""

    @classmethod
    def open(cls, folder: Path) -> "StoredWeights":
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return cls({name: folder / file for name, file in names.items()})
        file = folder / "model.safetensors"
        with safe_open(file, "pt") as tensors:
            return cls(dict.fromkeys(tensors.keys(), file))

    def read(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as tensors:
            return tensors.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self.files[name], "pt") as tensors:
            return tuple(tensors.get_slice(name).get_shape())


@dataclass(frozen=True)
class NamedTensor:
    """A tensor under llama.cpp's name, with its shape there, read when it is written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_model(
    folder: Path,
    file: Path,
    file_type: str,
    tokenizer: Any,
    stop_ids: Sequence[int],
    name: str,
    progress: Progress = lambda names, label: names,
) -> QuantizationPlan:
    """Write the model in a folder as a GGUF file.

    Args:
        file_type: a key of FILE_TYPES.
        stop_ids: tokens that end an answer.
        name: of the model, for llama.cpp's lists.

    Returns:
        What was written.

    Raises:
        ModelError: llama.cpp does not have this family, this setting or this tokenizer.
        RecipeError: there is no such type, or it needs a package that is missing.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family, weights = family_of(config), StoredWeights.open(folder)
    tensors = list(named_tensors(weights, config, family))
    plan = QuantizationPlan.make(file_type, config.num_hidden_layers, not any(x.name == "output.weight" for x in tensors))
    rows = next(x.shape[0] for x in tensors if x.name == "token_embd.weight")
    vocabulary = read_vocabulary(tokenizer, rows, stop_ids, folder)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family.arch])
    _write_general(writer, name, sum(torch.Size(x.shape).numel() for x in tensors))
    write_hyperparameters(writer, config, family)
    writer.add_file_type(plan.file_type)
    write_vocabulary(writer, vocabulary)
    write_tensors(writer, tensors, plan, progress)
    return plan


def _write_general(writer: GGUFWriter, name: str, num_weights: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(num_weights, 0, 0, 0))
    writer.add_quantized_by(f"weitiao {VERSION}")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def named_tensors(weights: StoredWeights, config: Any, family: Family) -> Iterator[NamedTensor]:
    """Every tensor that llama.cpp wants, under its name there.

    Raises:
        ModelError: it has no name for a tensor.
    """
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    for stored in weights.files:
        if stored.endswith(UNUSED) or (stored == "lm_head.weight" and (family.tied_only or config.tie_word_embeddings)):
            continue
        name = tensor_name(names, stored)
        shape = weights.shape(stored)
        shape = shape[::-1] if family.conv1d and stored.endswith(CONV1D) else shape

        def read(stored: str = stored) -> Tensor:
            return convert(stored, weights.read(stored).float(), config, family)

        yield NamedTensor(name, shape, read)
    for name, tensor in extra_tensors(config, family):
        yield NamedTensor(name, tuple(tensor.shape), lambda x=tensor: x)


def tensor_name(names: gguf.TensorNameMap, stored: str) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        ModelError: it has none.
    """
    name = names.get_name(stored, try_suffixes=SUFFIXES)
    if name is None:
        raise ModelError("GGUF: llama.cpp has no place for the tensor {name} in a model of this type.", name=stored)
    return name


def write_tensors(writer: GGUFWriter, tensors: Sequence[NamedTensor], plan: QuantizationPlan, progress: Progress) -> None:
    """The header with the tensors' places, then their bytes; one tensor is in memory at a time."""
    types = {x.name: plan.type_of(x.name, x.shape) for x in tensors}
    for x in tensors:
        chosen = types[x.name]
        block, size = gguf.GGML_QUANT_SIZES[chosen]
        num_bytes = torch.Size(x.shape).numel() // block * size
        writer.add_tensor_info(x.name, x.shape, np.dtype(np.float32), num_bytes, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    by_name = {x.name: x for x in tensors}
    for name in progress([x.name for x in tensors], "tensors"):
        chosen = types[name]
        data = quantize(by_name[name].read().contiguous().numpy(), chosen)
        writer.write_tensor_data(data)
        plan.count(data, chosen, torch.Size(by_name[name].shape).numel())
    writer.close()
