"""Where the modules of a transformer are, in any family: its layers, keys and values, the ends of the two sublayers.

          q k v                        up (gate)
x -- norm -- attention -- attention_out --(+)-- norm -- MLP -- mlp_out --(+)
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from weitiao.core.architecture import Architecture
from weitiao.core.errors import RecipeError
from weitiao.model.adapters.module_replacement import is_linear, last_names, shape_of

LENGTH_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions")  # the first that a config has
RELATIVE = {
    "bloom",
    "mpt",
    "t5",
    "mt5",
    "umt5",
    "longt5",
    "switch_transformers",
    "xlnet",
}  # no position has a vector of its own
AFTER_PADDING = {  # whose positions are counted from the padding token's id + 1
    "camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
KEYS = ("k_proj", "key", "k_lin", "key_proj", "k")
VALUES = ("v_proj", "value", "v_lin", "value_proj", "v")
QUERIES = ("q_proj", "query", "q_lin", "query_proj", "q")
FUSED = ("c_attn",)  # q, k and v in one layer, in this order
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
    limit = next((x for name in LENGTH_LIMITS if (x := getattr(config, name, None)) and x > 0), None)
    if limit and config.model_type in AFTER_PADDING:
        limit -= (config.pad_token_id or 0) + 1
    return Architecture(
        kind=kind,
        model_type=config.model_type,
        modality="speech" if config.model_type == "whisper" else "text",
        max_length=limit,
        has_position_table=limit is not None and not _is_relative(config),
        decoder_start_id=getattr(config, "decoder_start_token_id", None),
    )


def _is_relative(config: PreTrainedConfig) -> bool:
    """Whether positions are rotary or relative, and not looked up in a table."""
    if config.model_type.startswith("deberta"):
        return not getattr(config, "position_biased_input", True)
    rotary = any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta", "rotary_dim", "alibi"))
    return rotary or config.model_type in RELATIVE


def fixed_positions(model: nn.Module) -> set[str]:
    """Names of position embeddings that are sines and cosines, stored as weights (Marian, Pegasus): never trained."""
    modules = {name: module for name, module in model.named_modules() if "Sinusoidal" in type(module).__name__}
    return {f"{name}.{weight}" for name, module in modules.items() for weight, _ in module.named_parameters(recurse=False)}


def layer_stack(model: Any) -> Any:
    """The module from token ids to the last hidden states; of an encoder-decoder model, its decoder."""
    return model if architecture_of(model.config).kind == "encoder" else model.get_decoder()


def first_position(stack: nn.Module) -> int:
    """The position of a row's first token: RoBERTa and its kind count from the padding token's id + 1."""
    table = getattr(getattr(stack, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def last_hidden(model: Any, **inputs: Tensor) -> Tensor:
    """The last hidden states [B, T, D] by transformers' own forward pass, without a key-value cache."""
    no_cache = {} if architecture_of(model.config).kind == "encoder" else {"use_cache": False}  # encoders have none
    return layer_stack(model)(**inputs, **no_cache).last_hidden_state


@dataclass(frozen=True)
class OutputColumns:
    """A range of a linear layer's output columns."""

    layer: str
    start: int
    width: int


def keys_and_values(model: nn.Module) -> list[tuple[OutputColumns, OutputColumns]]:
    """For each layer, where its keys and its values are computed.

    Raises:
        RecipeError: the family's names for them are unknown.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    widths = {name: shape_of(module)[0] for name, module in linears.items()}
    last_name = {name: name.rpartition(".")[2] for name in linears}
    fused = {name: widths[name] // 3 for name in linears if last_name[name] in FUSED}
    if fused:
        return [(OutputColumns(name, w, w), OutputColumns(name, 2 * w, w)) for name, w in fused.items()]
    keys, values = ([name for name in linears if last_name[name] in names] for names in (KEYS, VALUES))
    if not keys or len(keys) != len(values):
        raise RecipeError(
            "method: this model's key and value layers have unknown names; linear layers are called: {names}",
            names=last_names(linears),
        )
    return [(OutputColumns(k, 0, widths[k]), OutputColumns(v, 0, widths[v])) for k, v in zip(keys, values)]


def sublayer_outputs(model: nn.Module) -> tuple[list[str], list[str]]:
    """(the last linear layer of each attention, the last of each MLP), in the model's order.

    Raises:
        RecipeError: the family's names for them are unknown.
    """
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    attention = [name for name in linears if name.endswith(ATTENTION_OUT)]
    mlp = [name for name in linears if name.endswith(MLP_OUT) and name not in attention]
    if not attention or len(attention) != len(mlp):
        raise RecipeError(
            "method: this model's last layers of attention and MLP have unknown names; linear layers are called: {names}",
            names=last_names(linears),
        )
    return attention, mlp


def mlp_inputs(model: nn.Module, mlp_outputs: list[str]) -> dict[str, str]:
    """For the last linear layer of each MLP, the first one, whose input is the MLP's input."""
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    first_layers = {}
    for output in mlp_outputs:
        mlp = output.rpartition(".")[0]
        inside = [name for name in linears if name.rpartition(".")[0] == mlp and name != output]
        # BERT's MLP is two modules, one after the other in the model's order
        first_layers[output] = inside[0] if inside else linears[linears.index(output) - 1]
    return first_layers
