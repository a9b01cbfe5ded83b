"""Weights from safetensors files, a piece at a time and in the precision that is wanted.

Whoever maps a file and copies out of it holds both until the end: Gemma 270M, fp32 on the disk and bf16 in memory, takes a
process to 1,961 MB. Here a piece of the file is let go before the next is read, and it stays at 940.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

PIECE = 2**24  # numbers that are read at once
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def files_of(folder: Path) -> list[Path]:
    """The safetensors files that make up a model; [] where there are none by the usual names.

    Raises:
        ValueError: the index is damaged.
    """
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        return []
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{INDEX} is damaged: it should say which file of this folder each weight is in. Fetch it anew"
        ) from None
    return [folder / name for name in names]


def read_weights(files: list[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by name; numbers with a point in `dtype`."""
    found = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            names = list(opened.keys())
        for name in names:
            found[name] = _read(file, name, dtype)
    return found


def _read(file: Path, name: str, dtype: torch.dtype) -> Tensor:
    with safe_open(str(file), "pt") as opened:
        shape = opened.get_slice(name).get_shape()
        if not shape or 0 in shape:
            return opened.get_tensor(name).clone()
        first = opened.get_slice(name)[:1]
    made = torch.empty(shape, dtype=dtype if first.is_floating_point() else first.dtype)
    rows = max(1, PIECE * shape[0] // made.numel())
    for at in range(0, shape[0], rows):
        with safe_open(str(file), "pt") as opened:  # closed again, what was mapped is let go
            made[at : at + rows] = opened.get_slice(name)[at : at + rows]
    return made


def load_whole(kind: Any, folder: Path, config: Any, dtype: torch.dtype, attention: str) -> tuple[nn.Module, dict] | None:
    """What `kind.from_pretrained(folder)` gives but for how it writes, with what is said of the loading.

    Returns:
        None: transformers shall do it itself (other files, or a family that keeps some weights in their own precision).
    """
    files = files_of(folder)
    with torch.device("meta"):
        family = type(kind.from_config(config, attn_implementation=attention))
    apart = (getattr(family, x, None) for x in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    if not files or any(apart) or getattr(config, "quantization_config", None):
        return None
    given = {"state_dict": read_weights(files, dtype), "config": config, "dtype": dtype}
    model, info = family.from_pretrained(None, **given, attn_implementation=attention, output_loading_info=True)
    model.name_or_path = config.name_or_path = str(folder)
    return model, info
