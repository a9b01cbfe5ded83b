"""How llama.cpp writes each family of decoders: its name, its hyperparameters, and what differs in its weights.

The official converter (llama.cpp, convert_hf_to_gguf.py) is the judge: tests/unit/deploy/export/gguf/test_judge.py compares
tensor bytes and metadata.

    llama, mistral      rows of q and k in another order: RoPE turns (i, i + 1) there, (i, i + D/2) in transformers
    qwen2, qwen3        as they are
    gemma, 2, 3         the norms multiply by 1 + weight: 1 is added
    gpt2                Conv1D: [in, out] becomes [out, in]
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor

from weitiao.core.errors import ModelError

CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
ROPE_TYPES = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class Family:
    """One family of decoders in GGUF."""

    arch: MODEL_ARCH
    activations: tuple[str, ...]
    """That llama.cpp computes; it has no key for another."""
    permutes: bool = False
    norm_shift: float = 0.0
    conv1d: bool = False
    tied_only: bool = False
    """llama.cpp always takes the embeddings as the output."""


SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_tanh")
FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, SILU, permutes=True),
    "mistral": Family(MODEL_ARCH.LLAMA, SILU, permutes=True),
    "qwen2": Family(MODEL_ARCH.QWEN2, SILU),
    "qwen3": Family(MODEL_ARCH.QWEN3, SILU),
    "gemma": Family(MODEL_ARCH.GEMMA, GELU, norm_shift=1.0, tied_only=True),
    "gemma2": Family(MODEL_ARCH.GEMMA2, GELU, norm_shift=1.0, tied_only=True),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, GELU, norm_shift=1.0),
    "gpt2": Family(MODEL_ARCH.GPT2, GELU, conv1d=True),
}


def family_of(config: Any) -> Family:
    """The family of a transformers config.

    Raises:
        ModelError: it is not one of ours, or llama.cpp has no key for a setting of it.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            "GGUF: models of type {type} cannot be written here; these can: {known}. llama.cpp's own "
            "convert_hf_to_gguf.py knows more: merge first, then run it on the folder.",
            type=config.model_type,
            known=", ".join(FAMILIES),
        )
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    activation = activation or config.activation_function
    if config.model_type == "gemma" and activation == "gelu":
        activation = "gelu_pytorch_tanh"  # what transformers computes for the first Gemma, whatever hidden_act says
    if activation not in family.activations:
        raise ModelError(
            "GGUF: llama.cpp computes {expected} for models of type {type}, and this one has {activation}.",
            expected=family.activations[0],
            type=config.model_type,
            activation=activation,
        )
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            "GGUF: RoPE of type {kind} is not written here; {known} are.", kind=kind, known=", ".join(ROPE_TYPES)
        )
    _check_attention(config, family)
    if family.tied_only and not config.tie_word_embeddings:
        raise ModelError("GGUF: llama.cpp ties the embeddings of models of type {type}.", type=config.model_type)
    return family


def _check_attention(config: Any, family: Family) -> None:
    """Refuse what llama.cpp computes otherwise and has no key for.

    Raises:
        ModelError: a scale or a pattern of layers that is not the family's own.
    """
    if family.arch not in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        return
    pattern, layers_of_27b = (2, 46) if family.arch == MODEL_ARCH.GEMMA2 else (6, 62)
    is_27b = config.num_hidden_layers == layers_of_27b
    scale = config.hidden_size // config.num_attention_heads if is_27b else head_width(config)
    expected = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(config.num_hidden_layers)]
    if config.query_pre_attn_scalar != scale or list(config.layer_types) != expected:
        raise ModelError(
            "GGUF: llama.cpp computes the attention of {type} with query_pre_attn_scalar {scale} and full attention in "
            "every {pattern}. layer; this model differs.",
            type=config.model_type,
            scale=scale,
            pattern=pattern,
        )


def context_length(config: Any, family: Family) -> int:
    """The most tokens; of a window that llama.cpp does not have for the family, as many as the two agree on."""
    length, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    has_window = window and family.arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN2, MODEL_ARCH.QWEN3)
    if has_window and "sliding_attention" in (getattr(config, "layer_types", None) or ("sliding_attention",)):
        return min(length, window)
    return length


def rope_parameters(config: Any) -> dict[str, Any]:
    """Those of layers with full attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


# -- hyperparameters --------------------------------------------------------------------------------------------------


def write_hyperparameters(writer: GGUFWriter, config: Any, family: Family) -> None:
    """The keys of `general` and of the architecture that llama.cpp reads."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config, family))
    writer.add_embedding_length(config.hidden_size)
    if family.conv1d:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = head_width(config)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if family.arch == MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if family.arch not in (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2) or rope_parameters(config).get("rope_theta") != 10000.0:
        _write_rope(writer, config)
    if family.arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        writer.add_sliding_window(config.sliding_window)
    if family.arch == MODEL_ARCH.GEMMA3 and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def head_width(config: Any) -> int:
    """Of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _write_rope(writer: GGUFWriter, config: Any) -> None:
    rope = rope_parameters(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(rope[key])
    local = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention") or {}
    if local.get("rope_theta") is not None:
        writer.add_rope_freq_base_swa(local["rope_theta"])


# -- weights ----------------------------------------------------------------------------------------------------------


def convert(name: str, weight: Tensor, config: Any, family: Family) -> Tensor:
    """A weight as llama.cpp stores it.

    Args:
        name: transformers' ("model.layers.0.self_attn.q_proj.weight").
    """
    if family.permutes and (heads := permuted_heads(name, config)):
        return permute(weight, heads)
    if family.norm_shift and name.endswith("norm.weight"):
        return weight + family.norm_shift
    if family.conv1d and name.endswith(CONV1D):
        return weight.T
    return weight


def permuted_heads(name: str, config: Any) -> int:
    """The heads of a projection whose rows RoPE turns; 0: it is none."""
    parts = name.split(".")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((heads[x] for x in parts if x in heads), 0)


def permute(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads x (2, D/2)] to [heads x (D/2, 2)]: the two halves that RoPE turns together become neighbours."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def extra_tensors(config: Any, family: Family) -> Iterator[tuple[str, Tensor]]:
    """rope_freqs: Llama 3's scaling of RoPE as a divisor of each frequency [D/2]."""
    rope = rope_parameters(config)
    if family.arch != MODEL_ARCH.LLAMA or rope.get("rope_type", "default") != "llama3":
        return
    width = head_width(config)
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    divisors: list[float] = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    yield "rope_freqs.weight", torch.tensor(divisors, dtype=torch.float32)
