"""A LoRA adapter in PEFT's format as a GGUF file, which llama.cpp puts on a base model without merging.

blk.0.attn_q.weight.lora_a   [r, in]     blk.0.attn_q.weight.lora_b   [out, r]     scale there: alpha / r
"""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from weitiao.core.errors import ModelError
from weitiao.deploy.export.gguf.families import Family, family_of, permute, permuted_heads
from weitiao.deploy.export.gguf.write import tensor_name

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def write_adapter(adapter: Path, base: Path, file: Path, name: str) -> int:
    """Write an adapter folder as GGUF.

    Args:
        base: the folder of its base model.

    Returns:
        How many weights it changes.

    Raises:
        ModelError: llama.cpp cannot have it: DoRA, biases, whole modules.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    family = family_of(config)
    pairs = read_pairs(load_file(adapter / "adapter_model.safetensors"), settings)
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    for stored, (a, b) in pairs.items():
        target = tensor_name(names, stored)
        a, b = _converted(stored, a, b * _correction(stored, a.shape[0], settings), config, family)
        writer.add_tensor(f"{target}.lora_a", _array(a))
        writer.add_tensor(f"{target}.lora_b", _array(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(pairs)


def read_pairs(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """transformers' name of each weight -> (A [r, in], B [out, r]).

    Raises:
        ModelError: there is something else in the adapter.
    """
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ModelError("llama.cpp knows plain LoRA only: export the merged model.")
    others = sorted(x for x in tensors if not x.endswith((A, B)))
    if others or settings.get("modules_to_save"):
        raise ModelError(
            "llama.cpp cannot have {name} in an adapter: export the merged model.",
            name=others[0] if others else ", ".join(settings["modules_to_save"]),
        )
    stems = sorted(x.removesuffix(A) for x in tensors if x.endswith(A))
    return {f"{x.removeprefix(PREFIX)}.weight": (tensors[x + A].float(), tensors[x + B].float()) for x in stems}


def _correction(stored: str, rank: int, settings: dict[str, Any]) -> float:
    """The factor by which PEFT's scale differs from lora_alpha / rank."""
    module = stored.removesuffix(".weight")
    alpha = float(_of_module(settings.get("alpha_pattern"), module, settings["lora_alpha"]))
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return scale / (float(settings["lora_alpha"]) / rank)


def _of_module(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    return next((x for key, x in (pattern or {}).items() if module == key or module.endswith("." + key)), default)


def _converted(stored: str, a: Tensor, b: Tensor, config: Any, family: Family) -> tuple[Tensor, Tensor]:
    """Rows of B as the weight's own rows are ordered."""
    heads = permuted_heads(stored, config) if family.permutes else 0
    return a, permute(b, heads) if heads else b


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.to(torch.float32).contiguous().numpy()
