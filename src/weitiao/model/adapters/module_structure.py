"""Where the parts of a transformer lie, whatever a family calls them: keys and values, the ends of the two sublayers.

          q k v                        up (gate)
x -- norm -- attention -- attention_out --(+)-- norm -- MLP -- mlp_out --(+)
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from weitiao.core.architecture import Architecture
from weitiao.core.errors import RecipeError
from weitiao.model.adapters.surgery import is_linear

LENGTH_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions")  # the first that a config has
KEYS = ("k_proj", "key", "k_lin", "key_proj", "k")
VALUES = ("v_proj", "value", "v_lin", "value_proj", "v")
QUERIES = ("q_proj", "query", "q_lin", "query_proj", "q")
FUSED = ("c_attn",)  # q, k and v in one, in this order
ATTENTION_OUT = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.output.dense",
    "attention.out_lin",
    "self_attn.out_proj",
    "SelfAttention.o",
)
MLP_OUT = (
    "mlp.down_proj",
    "mlp.c_proj",
    "output.dense",
    "ffn.lin2",
    "fc2",
    "mlp.fc2",
    "mlp.dense_4h_to_h",
    "DenseReluDense.wo",
)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture that a transformers config describes."""
    if getattr(config, "is_encoder_decoder", False):
        kind = "encoder_decoder"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        kind = "encoder"
    else:
        kind = "decoder"
    limits = (getattr(config, name, None) for name in LENGTH_LIMITS)
    return Architecture(
        kind=kind,
        model_type=config.model_type,
        modality="speech" if config.model_type == "whisper" else "text",
        max_length=next(filter(None, limits), None),
        decoder_start_id=getattr(config, "decoder_start_token_id", None),
    )


def stack_of(model: Any) -> Any:
    """The module that turns ids into the last hidden states."""
    return model if architecture_of(model.config).kind == "encoder" else model.get_decoder()


def first_position(stack: Any) -> int:
    """RoBERTa and its kind count positions from behind the padding token's id."""
    table = getattr(getattr(stack, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def last_hidden(model: Any, **inputs: Any) -> Any:
    """The last hidden states [B, T, D], by transformers' own forward pass; no keys and values are kept."""
    plain = {} if architecture_of(model.config).kind == "encoder" else {"use_cache": False}  # encoders have none to keep
    return stack_of(model)(**inputs, **plain).last_hidden_state


@dataclass(frozen=True)
class Columns:
    """Some columns of a linear layer's output."""

    layer: str
    begin: int
    width: int


def keys_and_values(model: nn.Module) -> list[tuple[Columns, Columns]]:
    """Of each layer, where its keys and its values are made.

    Raises:
        RecipeError: the family names them in a way not known here.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    last = {name: name.rpartition(".")[2] for name in linears}
    fused = [name for name in linears if last[name] in FUSED]
    if fused:
        width = {name: _width(linears[name]) // 3 for name in fused}
        return [(Columns(n, width[n], width[n]), Columns(n, 2 * width[n], width[n])) for n in fused]
    keys, values = ([n for n in linears if last[n] in known] for known in (KEYS, VALUES))
    if not keys or len(keys) != len(values):
        there = ", ".join(sorted(set(last.values())))
        raise RecipeError(f"method: no layers that make keys and values were found; linear layers are called: {there}.")
    return [(Columns(k, 0, _width(linears[k])), Columns(v, 0, _width(linears[v]))) for k, v in zip(keys, values)]


def ends(model: nn.Module) -> tuple[list[str], list[str]]:
    """(the last linear layer of each attention, the last of each MLP), in the model's order.

    Raises:
        RecipeError: the family names them in a way not known here.
    """
    every = [name for name, module in model.named_modules() if is_linear(module)]
    attention = [name for name in every if name.endswith(ATTENTION_OUT)]
    mlp = [name for name in every if name.endswith(MLP_OUT) and name not in attention]
    if not attention or len(attention) != len(mlp):
        there = ", ".join(sorted({name.rpartition(".")[2] for name in every}))
        raise RecipeError(f"method: the ends of attention and MLP were not found; linear layers are called: {there}.")
    return attention, mlp


def mlp_entrances(model: nn.Module, mlp_ends: list[str]) -> dict[str, str]:
    """For the last linear layer of each MLP, the first one: what it is given is what the MLP is given."""
    every = [name for name, module in model.named_modules() if is_linear(module)]
    found = {}
    for end in mlp_ends:
        home = end.rpartition(".")[0]
        inside = [name for name in every if name.rpartition(".")[0] == home and name != end]
        found[end] = inside[0] if inside else every[every.index(end) - 1]  # BERT keeps them in two modules, in order
    return found


def _width(layer: nn.Module) -> int:
    return layer.nf if isinstance(layer, Conv1D) else layer.out_features  # pyright: ignore[reportReturnType]
