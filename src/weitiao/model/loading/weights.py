"""Read weights from safetensors files in chunks, in the requested dtype.

Mapping a whole file and copying out of it holds both in memory: Gemma 270M, fp32 on disk and bf16 in memory, peaks at
1,961 MB. Here each chunk is released before the next is read, and the peak is 940 MB.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from weitiao.core.errors import InvalidValue

CHUNK = 2**24  # numbers read at once
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors names them
SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; [] where there are none with the usual names.

    Raises:
        InvalidValue: the index is damaged.
    """
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX).exists():
        return []
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidValue(
            "{file} is damaged: it must map each weight to a file of this folder. Download it again", file=INDEX
        ) from None
    return [folder / name for name in names]


def stored_dtype(folder: Path) -> torch.dtype | None:
    """What most of a model's weights are stored in, by the headers of its files; None: it has no safetensors."""
    sizes: Counter[str] = Counter()
    for file in safetensors_files(folder) or sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, x in header.items():
            if name != "__metadata__" and x["dtype"] in STORED:
                sizes[x["dtype"]] += math.prod(x["shape"])
    return STORED[sizes.most_common(1)[0][0]] if sizes else None


def read_weights(files: list[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by name; floating-point weights in `dtype`."""
    weights = {}
    for file in files:
        with safe_open(str(file), "pt") as stream:
            names = list(stream.keys())
        for name in names:
            weights[name] = _read(file, name, dtype)
    return weights


def _read(file: Path, name: str, dtype: torch.dtype) -> Tensor:
    with safe_open(str(file), "pt") as stream:
        shape = stream.get_slice(name).get_shape()
        if not shape or 0 in shape:
            return stream.get_tensor(name).clone()
        first = stream.get_slice(name)[:1]
    weight = torch.empty(shape, dtype=dtype if first.is_floating_point() else first.dtype)
    rows = max(1, CHUNK * shape[0] // weight.numel())
    for i in range(0, shape[0], rows):
        with safe_open(str(file), "pt") as stream:  # closing the file releases the mapped memory
            weight[i : i + rows] = stream.get_slice(name)[i : i + rows]
    return weight


def load_in_chunks(
    auto_class: Any, folder: Path, config: Any, dtype: torch.dtype, attention: str
) -> tuple[nn.Module, dict] | None:
    """(model, loading info) as from `auto_class.from_pretrained(folder)`, without its generation config.

    Returns:
        None where transformers has to load the model itself: other files, or a family with modules that stay in fp32.
    """
    files = safetensors_files(folder)
    with torch.device("meta"):
        family = type(auto_class.from_config(config, attn_implementation=attention))
    keep_in_fp32 = (getattr(family, x, None) for x in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    if not files or any(keep_in_fp32) or getattr(config, "quantization_config", None):
        return None
    options = {"state_dict": read_weights(files, dtype), "config": config, "dtype": dtype}
    model, info = family.from_pretrained(None, **options, attn_implementation=attention, output_loading_info=True)
    model.name_or_path = config.name_or_path = str(folder)
    return model, info
