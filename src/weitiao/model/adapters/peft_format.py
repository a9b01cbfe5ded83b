"""PEFT's adapter format: adapters trained here open in PEFT, and PEFT's open here."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import ModelError
from weitiao.core.files import share_weights
from weitiao.core.method import Attachment
from weitiao.core.new_folder import refuse_unfinished
from weitiao.model.adapters.module_structure import architecture_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder_decoder": "SEQ_2_SEQ_LM"}


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def save_adapter(attachment: Attachment, folder: Path, base: str) -> bool:
    """Write the trained weights in PEFT's format.

    Returns:
        False if PEFT does not have the method.
    """
    if attachment.as_peft is None:
        return False
    write_adapter(*attachment.as_peft(), folder, base)
    return True


def write_adapter(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, base: str) -> None:
    """Write PEFT's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.to("cpu").contiguous() for name, x in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=1) + "\n")
    share_weights(folder)


def with_head(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    task: str,
    prefixes: tuple[str, str],
    head: str,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """An adapter together with a trained head, for a transformers class with that head; None: PEFT has none of its kind.

    Args:
        task: PEFT's task_type.
        prefixes: of the inner model's weights, where it was trained and in the class ("model.", "transformer.").
        head: the head's name there.
    """
    before, after = (f"{PREFIX}{prefix}" for prefix in prefixes)
    if any(not name.startswith(before) for name in tensors) or config.get("modules_to_save"):
        return None
    own = {f"{PREFIX}{head}.weight": weight.detach()}
    own[f"{PREFIX}{head}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    renamed = {after + name.removeprefix(before): x for name, x in tensors.items()}
    return {**config, "task_type": task, "modules_to_save": [head]}, {**renamed, **own}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of a PEFT adapter.

    Raises:
        ModelError: its weights are missing, or not safetensors, or it is still being written.
    """
    refuse_unfinished(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            "{folder} contains no {file} (pickle files such as adapter_model.bin are not opened)",
            folder=folder,
            file=WEIGHTS,
        )
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def load_adapter(attachment: Attachment, folder: Path) -> None:
    """Copy a PEFT adapter's tensors into an attached method.

    Raises:
        ModelError: the file is damaged, a weight is not finite, or the tensors do not match the config.
    """
    if attachment.from_peft is None:
        raise ModelError("this method has no PEFT format")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError("{file} is missing or damaged ({error}).", file=folder / WEIGHTS, error=str(error)) from None
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ModelError("{name}: the adapter's weights in {layer} are not finite numbers.", name=folder, layer=name)
    attachment.from_peft(tensors)


def peft_task(model: PreTrainedModel) -> str | None:
    """PEFT's task_type, which decides how PEFT calls the model; None: PEFT passes all arguments on (speech models)."""
    architecture = architecture_of(model.config)
    return None if architecture.modality == "speech" else TASK_TYPES[architecture.kind]


def peft_name(name: str) -> str:
    """PEFT's name of a parameter."""
    return PREFIX + name + (".weight" if name.endswith(("lora_A", "lora_B")) else "")


def peft_tensors(model: nn.Module, trainable: Collection[str]) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names."""
    parameters = dict(model.named_parameters())
    return {peft_name(name): parameters[name].detach() for name in sorted(trainable)}


def load_peft_tensors(
    model: nn.Module, trainable: Collection[str], tensors: dict[str, Tensor], name_of: Callable[[str], str] = peft_name
) -> None:
    """Copy tensors under PEFT's names into the trainable parameters.

    Args:
        name_of: a parameter's name -> PEFT's name.

    Raises:
        ModelError: names or shapes differ.
    """
    parameters = dict(model.named_parameters())
    expected = {name_of(name): parameters[name] for name in trainable}
    if different := sorted(expected.keys() ^ tensors.keys()):
        raise ModelError(
            "the adapter's tensors do not match its config: {name} and {others} more differ",
            name=different[0],
            others=len(different) - 1,
        )
    for name, weight in expected.items():
        if weight.shape != tensors[name].shape:
            raise ModelError(
                "the adapter's {name} has shape {found}, but by its config {expected}",
                name=name,
                found=tuple(tensors[name].shape),
                expected=tuple(weight.shape),
            )
        with torch.no_grad():
            weight.copy_(tensors[name])
