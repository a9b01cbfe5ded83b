"""Adapters in PEFT's format: what we learn opens in PEFT, and what PEFT learnt opens here."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment
from weitiao.model.adapters.module_structure import architecture_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before every name


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


def peft_task(model: Any) -> str | None:
    """PEFT's task_type, which decides how PEFT calls the model; None: as it is called."""
    architecture = architecture_of(model.config)
    if architecture.modality == "speech":
        return None
    return {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder_decoder": "SEQ_2_SEQ_LM"}[architecture.kind]


def peft_name(name: str) -> str:
    """A weight's name in PEFT's files."""
    end = ".weight" if name.endswith(("lora_A", "lora_B")) else ""
    return PREFIX + name + end


def peft_tensors(model: nn.Module, trainable: Collection[str]) -> dict[str, Tensor]:
    """Learnt tensors under PEFT's names."""
    weights = dict(model.named_parameters())
    return {peft_name(name): weights[name].detach() for name in sorted(trainable)}


def take_peft(
    model: nn.Module, trainable: Collection[str], tensors: dict[str, Tensor], called: Callable[[str], str] = peft_name
) -> None:
    """Take over tensors under PEFT's names.

    Raises:
        ModelError: names or shapes are not those of the method.
    """
    weights = dict(model.named_parameters())
    wanted = {called(name): weights[name] for name in trainable}
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise ModelError(f"the adapter's tensors are not those of its config: {odd[0]} and {len(odd) - 1} more differ.")
    for name, weight in wanted.items():
        if weight.shape != tensors[name].shape:
            there, here = tuple(tensors[name].shape), tuple(weight.shape)
            raise ModelError(f"the adapter's {name} has shape {there}, its config says {here}.")
        with torch.no_grad():
            weight.copy_(tensors[name])
