"""Adapters in PEFT's format: what we learn opens in PEFT, and what PEFT learnt opens here."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def save_adapter(attachment: Attachment, folder: Path, base: str) -> bool:
    """Write the learnt weights as PEFT stores them; False if PEFT does not know the method."""
    if attachment.as_peft is None:
        return False
    write_adapter(*attachment.as_peft(), folder, base)
    return True


def write_adapter(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, base: str) -> None:
    """PEFT's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.to("cpu").contiguous() for name, x in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=1) + "\n")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """A PEFT adapter's config.

    Raises:
        ModelError: it is not one, or its weights are not safetensors.
    """
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS} (pickle files such as adapter_model.bin are not opened).")
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def load_adapter(attachment: Attachment, folder: Path) -> None:
    """Put a PEFT adapter's tensors into an attached method.

    Raises:
        ModelError: the tensors are not those of the config.
    """
    if attachment.from_peft is None:
        raise ModelError("this method has no PEFT format.")
    attachment.from_peft(load_file(folder / WEIGHTS))
