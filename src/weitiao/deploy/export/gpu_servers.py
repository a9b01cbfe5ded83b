"""What servers for GPUs (vLLM, TensorRT-LLM) can be checked for without them: names, ranks, keys of the configs.

Lists are of vLLM 0.32 and TensorRT-LLM 1.2. A model that is not in a list may still run: the server has the last word.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.deploy.export.format import ExportSource
from weitiao.deploy.merging.config_spellings import write_both_spellings

DECODERS = frozenset(
    f"{x}ForCausalLM"
    for x in (
        "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Gemma", "Gemma2", "Gemma3", "Phi", "Phi3",
        "Falcon", "OPT", "Olmo", "Olmo2", "Starcoder2", "Cohere", "Granite", "GPTNeoX", "StableLm", "InternLM2", "SmolLM3",
        "Nemotron", "DeepseekV2", "DeepseekV3",
    )
) | {"GPT2LMHeadModel"}  # fmt: skip
TENSORRT_DECODERS = frozenset(
    f"{x}ForCausalLM"
    for x in (
        "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Gemma3", "Phi3", "Nemotron", "DeepseekV3",
    )
)  # fmt: skip
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM's --max-lora-rank takes."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TENSORRT_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
}
COPIED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def write_folder(source: ExportSource, folder: Path, dtype: str, max_shard_size: str) -> None:
    """The merged model, with the keys of its config as older readers spell them, too."""
    merged = source.merge(dtype, max_shard_size)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for file in merged.glob(pattern):
            try:
                os.link(file, folder / file.name)  # of a temporary folder on the same disk: no copy
            except OSError:
                shutil.copy2(file, folder / file.name)
    write_both_spellings(folder)


def check_architecture(base: Path, known: frozenset[str], server: str) -> Message:
    """Whether a server's list has the architecture."""
    names = json.loads((base / "config.json").read_text(encoding="utf-8")).get("architectures") or ["?"]
    if names[0] in known:
        return Message("{architecture} is in {server}'s list of models", architecture=names[0], server=server)
    return Message(
        "{architecture} is not in the list of models of {server} that weitiao has: try it",
        architecture=names[0],
        server=server,
    )


def read_adapter_settings(adapter: Path, server: str) -> dict[str, Any]:
    """The config of an adapter that a server can have.

    Raises:
        ModelError: the server would refuse it, or read it wrongly without a word.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    reasons = {
        "peft_type": settings.get("peft_type") not in (None, "LORA"),
        "modules_to_save": bool(settings.get("modules_to_save")),
        "trainable_token_indices": bool(settings.get("trainable_token_indices")),
        "use_dora": bool(settings.get("use_dora")),
        "bias": settings.get("bias", "none") != "none",
        "rank_pattern": bool(settings.get("rank_pattern")),
        "alpha_pattern": bool(settings.get("alpha_pattern")),
        "r": int(settings.get("r", 0)) > RANKS[-1],
        "fan_in_fan_out": bool(settings.get("fan_in_fan_out")),
    }
    if wrong := [key for key, is_wrong in reasons.items() if is_wrong]:
        raise ModelError(
            "{server} cannot have this adapter: {key} is {value}. Export the merged model.",
            server=server,
            key=wrong[0],
            value=settings.get(wrong[0]),
        )
    targets = settings.get("target_modules") or []
    others = sorted({x.rpartition(".")[2] for x in targets if isinstance(targets, list)} - set(LINEAR))
    if others:
        raise ModelError(
            "{server} cannot have adapters of {modules}: export the merged model.", server=server, modules=", ".join(others)
        )
    return settings


def max_rank(rank: int) -> int:
    """The least of vLLM's ranks that an adapter fits."""
    return next(x for x in RANKS if x >= rank)
