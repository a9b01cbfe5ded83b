"""How many FLOPs a training step needs, by the model's shapes, the method and the supervised tokens.

A layer [D_out, D_in] on n tokens        forward               2 n D_out D_in
                                         to its input          the same, if something that is trained comes before it
                                         to its weight         the same, if the weight is trained
A low-rank change next to it             two such layers: A [R, D_in] and B [D_out, R]
Attention, a segment of s tokens         forward               4 H d for each pair of tokens of which one attends to the
                                                               other: s (s + 1) / 2 pairs if causal, else s s
                                         backward              twice that, if a gradient flows through it
The LM head [V, D], at N tokens          forward               2 N V D
                                         to the hidden states  the same, if something that is trained comes before it
                                         to its weight         the same, if it is trained
The layers of an objective's head        as any layer, on the number of targets

This is what the step needs, not what this code runs. For language modeling, the query, attention, output and MLP of the
last layer count only for the tokens whose hidden state is read (the supervised ones); its keys and values count for
all. A fused q-k-v layer counts in full. Virtual tokens (soft prompts, prefixes) count as tokens. Shared prefixes count
once where they run once (core/shared_prefix.py). A layer that sees other rows than the tokens (the network behind a
prefix) counts once per batch. Not counted: elementwise operations, look-ups, what is computed from weights only (DoRA's
norms), recurrent layers, the optimizer, the second run of checkpointed layers, and what regularizers add.

Which layers' inputs depend on a trained weight is not guessed from names: five tokens run through the model once, and
autograd knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModel

from weitiao.core.batch import IGNORE, Batch, pack, select_task, with_virtual_tokens
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.shared_prefix import PrefixSharedBatch
from weitiao.core.trainable_model import TrainableModel, evaluating, layer_of
from weitiao.model.adapters.module_replacement import is_linear, shape_of
from weitiao.model.adapters.module_structure import QUERIES, architecture_of, layer_stack
from weitiao.model.backbone.block_backbone import BlockBackbone

PROBE_TOKENS = 5
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")  # config keys of mixtures of experts


@dataclass(frozen=True)
class Product:
    """A matrix product of a layer."""

    name: str
    shape: tuple[int, int]
    """(D_out, D_in)"""
    to_input: bool = False
    """The gradient to its input is needed."""
    to_weight: bool = False
    """The gradient to its weight is needed."""
    own: bool = True
    """The model's own layer; False: a method's change next to it."""
    rows: int | None = None
    """Rows per batch, if it does not see every token (a table of positions); None: every token."""
    tail: bool = False
    """It comes after the last keys and values: only tokens whose hidden state is read need it."""

    @property
    def num_products(self) -> int:
        """Products of the weight's size per step: 1 to 3."""
        return 1 + self.to_input + self.to_weight


@dataclass(frozen=True)
class Attention:
    """The attention of one layer."""

    name: str
    width: int
    """H d"""
    has_gradient: bool
    """A gradient flows through it."""
    window: int | None = None
    tail: bool = False
    """Only tokens whose hidden state is read need it: it is the last layer's."""


@dataclass(frozen=True)
class FlopProfile:
    """What a model's backbone computes, measured with five tokens."""

    products: list[Product]
    attentions: list[Attention]
    causal: bool
    has_gradient: bool
    """The last hidden states depend on something that is trained."""
    bypasses_layers: bool = False
    """Some layer never ran: a method uses its weight in another way, which is not counted."""

    def backbone_flops(
        self, lengths: Sequence[int], num_read: int, from_layer: int = 0, shared: Sequence[int] = ()
    ) -> float:
        """FLOPs of the backbone, forward and backward.

        Args:
            lengths: of the segments, virtual tokens included.
            num_read: tokens whose last hidden state is read.
            from_layer: layers below this one do not run (their outputs are in the activation cache).
            shared: for each segment, how many of its first tokens ran as part of an earlier segment.
        """
        num_tokens = sum(lengths) - sum(shared)
        read_fraction, flops = min(1.0, num_read / num_tokens), 0.0
        for x in self.products:
            if (layer_of(x.name) or 0) >= from_layer:
                rows = x.rows if x.rows is not None else num_tokens * (read_fraction if x.tail else 1.0)
                flops += 2.0 * x.num_products * rows * x.shape[0] * x.shape[1]
        for x in self.attentions:
            if (layer_of(x.name) or 0) >= from_layer:
                # shared tokens attend to each other in the earlier segment already
                num_pairs = sum(attention_pairs(n, self.causal, x.window) for n in lengths)
                num_pairs -= sum(attention_pairs(n, self.causal, x.window) for n in shared)
                flops += 4.0 * x.width * num_pairs * (read_fraction if x.tail else 1.0) * (3 if x.has_gradient else 1)
        return flops


def attention_pairs(length: int, causal: bool, window: int | None = None) -> int:
    """How many pairs (query, key) the attention of a segment has.

    >>> attention_pairs(4, True), attention_pairs(4, False), attention_pairs(4, True, 2)
    (10, 16, 7)
    """
    span = min(window or length, length)
    to_itself_and_back = span * length - span * (span - 1) // 2
    return to_itself_and_back if causal else 2 * to_itself_and_back - length


def unsupported_reason(model: TrainableModel, objective: Objective) -> Message | None:
    """Why the FLOPs of this kind of run are not counted; None: they are."""
    config: Any = model.model.config
    text_config = config.get_text_config()
    if model.architecture.kind == "encoder_decoder":
        return Message("FLOPs are not counted for encoder-decoder models")
    if any(getattr(text_config, key, None) for key in EXPERT_KEYS):
        return Message("FLOPs are not counted for mixtures of experts")
    if any(part.traits.repacks_segments for part in objective.parts().values()):
        return Message("FLOPs are not counted for objectives that repack segments")
    return None


def step_flops(
    profile: FlopProfile, model: TrainableModel, objective: Objective, batch: Batch, from_layer: int = 0
) -> float:
    """FLOPs that training on the batch needs, forward and backward."""
    if not batch.tasks:
        return _task_flops(profile, model, objective, batch, from_layer)
    return sum(
        _task_flops(profile, model.for_task(task), objective.part(task), select_task(batch, task)[0], from_layer)
        for task in dict.fromkeys(batch.tasks)
    )


def _task_flops(profile: FlopProfile, model: TrainableModel, part: Objective, batch: Batch, from_layer: int) -> float:
    virtual_tokens, num_targets = model.attachment.virtual_tokens(), sum(part.counts(batch).values())
    full_batch = with_virtual_tokens(batch, virtual_tokens)[0] if virtual_tokens else batch
    if isinstance(model.backbone, BlockBackbone):
        full_batch = model.backbone.share_prefixes(full_batch)
    shared = full_batch.shared_lengths if isinstance(full_batch, PrefixSharedBatch) else ()
    lm_head = _lm_head(model, part)
    supervised = num_targets if part.traits.needs_mlm_head else int((batch.labels != IGNORE).sum())
    num_read = int(supervised) if lm_head is not None else full_batch.tokens
    flops = profile.backbone_flops(full_batch.lengths, num_read, from_layer, shared)
    heads = [(x.weight, num_targets) for x in model.heads.modules() if isinstance(x, nn.Linear)]
    for weight, rows in [*heads, *([(lm_head, supervised)] if lm_head is not None else [])]:
        flops += 2.0 * rows * weight.numel() * (1 + profile.has_gradient + weight.requires_grad)
    return flops


def _lm_head(model: TrainableModel, part: Objective) -> Tensor | None:
    """The weight [V, D] of the LM head; None: the objective does not use it."""
    if part.traits.needs_mlm_head:
        return _embedding(model).weight
    return model.lm_head.weight() if part.traits.generative and model.architecture.kind != "encoder" else None


def _embedding(model: TrainableModel) -> nn.Embedding:
    return cast(nn.Embedding, model.model.get_input_embeddings())


# -- the probe --------------------------------------------------------------------------------------------------------


@dataclass
class _Recorder:
    """The inputs of layers, in the order in which the layers ran."""

    num_tokens: int
    calls: list[tuple[str, list[Product]]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def record(self, name: str, module: nn.Module) -> RemovableHandle:
        """Record the layer's next calls, until the handle is removed."""

        def before_forward(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x: Tensor = inputs[0]
            num_rows = x.shape[:-1].numel()
            rows = None if num_rows == self.num_tokens else num_rows
            self.calls.append((name, _products(name, module, x.requires_grad, rows)))
            self.inputs.append(x)

        return module.register_forward_pre_hook(before_forward)


def profile_flops(model: TrainableModel) -> FlopProfile:
    """Run five tokens through the backbone and record the input of each layer. The model is not changed."""
    vocab_size = _embedding(model).num_embeddings
    ids = [i % vocab_size for i in range(3, 3 + PROBE_TOKENS)]
    batch = pack([{"input_ids": ids, "labels": ids}]).to(model.device)
    virtual_tokens = model.attachment.virtual_tokens()
    if virtual_tokens:
        batch = with_virtual_tokens(batch, virtual_tokens)[0]
    recorder, layers = _Recorder(PROBE_TOKENS + len(virtual_tokens)), _layers(model.model)
    hooks = [recorder.record(name, module) for name, module in layers]
    try:
        with evaluating(model), torch.enable_grad():
            has_gradient = model.backbone(batch).requires_grad
    finally:
        for hook in hooks:
            hook.remove()
    names = {name for name, _ in recorder.calls}
    return _assemble(model, recorder, has_gradient, any(name not in names for name, _ in layers))


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that tokens go through, each with what a method put next to it; without the LM head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        is_inside = layers and name.startswith(f"{layers[-1][0]}.")
        if module is not head and not is_inside and (is_linear(module) or hasattr(module, "factors")):
            layers.append((name, module))
    return layers


def _products(name: str, module: Any, needs_input_grad: bool, rows: int | None) -> list[Product]:
    """The products of a layer, and of the low-rank change next to it.

    Args:
        needs_input_grad: its input depends on something that is trained.
    """
    base = module
    while hasattr(base, "base_layer"):
        base = base.base_layer
    is_trained = any(weight.requires_grad for key, weight in base.named_parameters() if key == "weight")
    products = [Product(name, shape_of(base), to_input=needs_input_grad, to_weight=is_trained, rows=rows)]
    if hasattr(module, "factors"):
        a, b = module.factors()
        # the input of B depends on A, and on whatever else is trained between them
        needs_low_grad = needs_input_grad or any(
            x.requires_grad for key, x in module.named_parameters() if not key.startswith("base_layer")
        )
        for x, to_input in ((a, needs_input_grad), (b, needs_low_grad)):
            shape = (x.shape[0], x.shape[1])
            products.append(Product(name, shape, to_input=to_input, to_weight=x.requires_grad, own=False, rows=rows))
    return products


def _assemble(model: TrainableModel, recorder: _Recorder, has_gradient: bool, bypasses_layers: bool) -> FlopProfile:
    """The profile, from the recorded calls.

    Attention itself is no layer, so it is found by the linear layer that ends it: that layer's input [T, H d] is the
    attention's output. The `tail` is everything from the last of these layers on, and the last layer's query before it:
    what comes after the last keys and values serves only the tokens whose hidden state is read.
    """
    call_names = [name for name, _ in recorder.calls]
    ends = attention_ends(call_names)
    end_calls = [i for i, name in enumerate(call_names) if name in ends]
    tail: set[int] = set()
    if end_calls:
        is_query = [bool(set(name.split(".")) & set(QUERIES)) for name in call_names]
        last_query = [i for i in range(end_calls[-1]) if is_query[i]][-1:]  # none where q, k and v are fused
        tail = {*last_query, *range(end_calls[-1], len(call_names))}
    products = [replace(x, tail=i in tail and x.rows is None) for i, (_, call) in enumerate(recorder.calls) for x in call]
    config: Any = model.model.config
    attentions = []
    for layer, i in enumerate(end_calls):
        x, window = recorder.inputs[i], _window(config.get_text_config(), layer)
        attentions.append(Attention(call_names[i], x.shape[-1], x.requires_grad, window, tail=i == end_calls[-1]))
    return FlopProfile(products, attentions, model.architecture.kind != "encoder", has_gradient, bypasses_layers)


def attention_ends(names: Sequence[str]) -> set[str]:
    """The layers that end an attention, given the names of layers in the order in which they run.

    They are the last layer of each transformer layer with 'att' in its name, as every family has it (self_attn.o_proj,
    attention.output.dense, attn.c_proj ...).

    >>> sorted(attention_ends(["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.1.attn.c_proj"]))
    ['h.0.attn.c_proj', 'h.1.attn.c_proj']
    """
    last = {
        layer_of(f".{x}"): x for x in names if "att" in x.lower() and "lora_" not in x and layer_of(f".{x}") is not None
    }
    return set(last.values())


def _window(config: Any, layer: int) -> int | None:
    """The sliding window of a layer; None: its attention is not limited."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[min(layer, len(layer_types) - 1)] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


# -- shapes alone -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelShapes:
    """The shapes of a model's layers."""

    layers: dict[tuple[int, int], int]
    """(D_out, D_in) -> number of linear layers of this shape."""
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool


def model_shapes(folder: str | Path) -> ModelShapes:
    """The shapes of the model in a folder, from its config; no weight is read."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    causal = architecture_of(config).kind != "encoder"
    backbone = model if causal else layer_stack(model)
    layers: dict[tuple[int, int], int] = {}
    for name, module in backbone.named_modules():
        if is_linear(module) and "pooler" not in name:
            shape = shape_of(module)
            layers[shape] = layers.get(shape, 0) + 1
    text_config = config.get_text_config()
    heads = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return ModelShapes(layers, heads, kv_heads, head_dim, causal)
