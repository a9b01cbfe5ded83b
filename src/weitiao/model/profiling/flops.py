"""How much arithmetic a step needs, by the model's shapes, the method and the supervised share; not what our code does.

A layer [D_out, D_in] on n tokens        forward               2 n D_out D_in
                                         to its input          the same, if something that is trained lies below
                                         to its weight         the same, if the weight is trained
A low-rank change beside it              two such layers: A [R, D_in] and B [D_out, R]
Attention, a segment of s tokens         forward               4 H d for each pair of tokens that see one another:
                                                               s (s + 1) / 2 pairs where it is causal, s s where not
                                         backward              twice that, where a gradient flows through it
The vocabulary [V, D], at N supervised   forward               2 N V D
                                         to the hidden states  the same, if something that is trained lies below
                                         to its weight         the same, if it is trained
A head's own layers                      as any layer, at what the loss is a sum over

Where words are learnt, the last layer's query, attention, output and MLP count at the share of tokens that are read (the
supervised ones); its keys and values count at all. A fused q-k-v counts in full. Slots (soft prompts, prefixes) count as
tokens; what rows begin with in common counts once, where it runs once (core/shared_prefix.py); a layer that sees other rows
than the tokens' (the network behind a prefix) counts once a batch. Nought: what works element by element, look-ups, what is
made of weights alone (DoRA's lengths), recurrent layers, the optimizer, a second run of layers to save memory, and what
regularizers add.

Which layer is given something that depends on a trained weight is not guessed from names: five tokens run through the
model once, and autograd knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from weitiao.core.batch import IGNORE, Batch, pack, select_task, with_virtual_tokens
from weitiao.core.objective import Objective
from weitiao.core.shared_prefix import PrefixSharedBatch
from weitiao.core.trainable_model import TrainableModel, evaluating, layer_of
from weitiao.model.adapters.module_structure import QUERIES, architecture_of, stack_of
from weitiao.model.adapters.surgery import is_linear, shape_of
from weitiao.model.backbone.decoder import BlockBackbone

PROBE = 5  # tokens
MIXTURES = ("num_experts", "num_local_experts", "n_routed_experts")  # how configs call what only some tokens go through


@dataclass(frozen=True)
class Product:
    """A layer that tokens go through."""

    name: str
    shape: tuple[int, int]
    """(D_out, D_in)"""
    to_input: bool = False
    to_weight: bool = False
    own: bool = True
    """The model's own layer; False: a method's change beside it."""
    rows: int | None = None
    """It sees so many rows a batch (a table of positions); None: every token."""
    tail: bool = False
    """It lies behind the last keys and values: only tokens that are read need it."""

    @property
    def times(self) -> int:
        """How many products of the weight's size a step needs: 1 to 3."""
        return 1 + self.to_input + self.to_weight


@dataclass(frozen=True)
class Attention:
    """Of one layer."""

    name: str
    width: int
    """H d"""
    flows: bool
    """A gradient goes back through it."""
    window: int | None = None
    tail: bool = False


@dataclass(frozen=True)
class FlopProfile:
    """What five tokens saw on their way through the body of a model."""

    products: list[Product]
    attentions: list[Attention]
    causal: bool
    flows: bool
    """The last hidden states depend on something that is trained."""
    passed_by: bool = False
    """Some layer never ran: a method takes its weight and goes another way, which nobody counted."""

    def body(self, lengths: Sequence[int], read: int, from_layer: int = 0, shared: Sequence[int] = ()) -> float:
        """FLOPs of the body, forward and backward.

        Args:
            lengths: of the segments, slots included.
            read: tokens whose last hidden state is read.
            from_layer: what lies below this layer has run before (a cache of frozen layers).
            shared: tokens that a segment begins with as an earlier one did: they ran there.
        """
        tokens = sum(lengths) - sum(shared)
        share, found = min(1.0, read / tokens), 0.0
        for x in self.products:
            if (layer_of(x.name) or 0) >= from_layer:
                rows = x.rows if x.rows is not None else tokens * (share if x.tail else 1.0)
                found += 2.0 * x.times * rows * x.shape[0] * x.shape[1]
        for x in self.attentions:
            if (layer_of(x.name) or 0) >= from_layer:
                seen, twice = (sum(pairs(s, self.causal, x.window) for s in some) for some in (lengths, shared))
                found += 4.0 * x.width * (seen - twice) * (share if x.tail else 1.0) * (3 if x.flows else 1)
        return found


def pairs(length: int, causal: bool, window: int | None = None) -> int:
    """How many pairs of tokens see one another in a segment.

    >>> pairs(4, True), pairs(4, False), pairs(4, True, 2)
    (10, 16, 7)
    """
    far = min(window or length, length)
    back = far * length - far * (far - 1) // 2
    return back if causal else 2 * back - length


def unsupported_reason(model: TrainableModel, objective: Objective) -> str:
    """Why this kind of run has no count; "" where it has."""
    config = model.model.config.get_text_config()  # pyright: ignore
    if model.architecture.kind == "encoder_decoder":
        return "a model of two halves"
    if any(getattr(config, key, None) for key in MIXTURES):
        return "a mixture of experts"
    if any(part.traits.repacks_segments for part in objective.parts().values()):
        return "an objective that packs its rows anew"
    return ""


def step_flops(
    profile_flops: FlopProfile, model: TrainableModel, objective: Objective, batch: Batch, from_layer: int = 0
) -> float:
    """FLOPs that the batch needs, forward and backward."""
    if not batch.tasks:
        return _of_task(profile_flops, model, objective, batch, from_layer)
    return sum(
        _of_task(profile_flops, model.for_task(task), objective.part(task), select_task(batch, task)[0], from_layer)
        for task in dict.fromkeys(batch.tasks)
    )


def _of_task(profile_flops: FlopProfile, model: TrainableModel, part: Objective, batch: Batch, from_layer: int) -> float:
    virtual_tokens, asked = model.attachment.virtual_tokens(), sum(part.counts(batch).values())
    runs = with_virtual_tokens(batch, virtual_tokens)[0] if virtual_tokens else batch
    if isinstance(model.backbone, BlockBackbone):
        runs = model.backbone.merged(runs)
    shared = runs.shared_lengths if isinstance(runs, PrefixSharedBatch) else ()
    words = _lm_head(model, part)
    supervised = asked if part.traits.needs_mlm_head else int((batch.labels != IGNORE).sum())
    found = profile_flops.body(runs.lengths, int(supervised) if words is not None else runs.tokens, from_layer, shared)
    heads = [(x.weight, asked) for x in model.heads.modules() if isinstance(x, nn.Linear)]
    for weight, rows in [*heads, *([(words, supervised)] if words is not None else [])]:
        found += 2.0 * rows * weight.numel() * (1 + profile_flops.flows + weight.requires_grad)
    return found


def _lm_head(model: TrainableModel, part: Objective) -> Tensor | None:
    """The weight [V, D] that words are scored with; None: none are."""
    if part.traits.needs_mlm_head:
        return model.model.get_input_embeddings().weight
    return model.lm_head.weight() if part.traits.generative and model.architecture.kind != "encoder" else None


# -- the probe --------------------------------------------------------------------------------------------------------


@dataclass
class _Heard:
    """What layers were given, in the order in which they ran."""

    tokens: int
    calls: list[tuple[str, list[Product]]] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)

    def listen(self, name: str, module: nn.Module):
        def hear(_: nn.Module, given: tuple[Any, ...]) -> None:
            x: Tensor = given[0]
            rows = x.shape[:-1].numel()
            self.calls.append((name, _products(name, module, x.requires_grad, None if rows == self.tokens else rows)))
            self.given.append(x)

        return module.register_forward_pre_hook(hear)


def profile_flops(model: TrainableModel) -> FlopProfile:
    """Run five tokens through the body, and write down what each layer was given. Nothing is changed by it."""
    many = model.model.get_input_embeddings().num_embeddings
    ids = [i % many for i in range(3, 3 + PROBE)]
    batch = pack([{"input_ids": ids, "labels": ids}]).to(model.device)
    virtual_tokens = model.attachment.virtual_tokens()
    input_features, layers = _Heard(PROBE + len(virtual_tokens)), _layers(model.model)
    hooks = [input_features.listen(name, module) for name, module in layers]
    try:
        with evaluating(model), torch.enable_grad():
            flows = model.backbone(
                with_virtual_tokens(batch, virtual_tokens)[0] if virtual_tokens else batch
            ).requires_grad  # all of it, every token
    finally:
        for hook in hooks:
            hook.remove()
    ran = {name for name, _ in input_features.calls}
    passed_by = any(name not in ran for name, _ in layers)
    return _put_together(model, input_features, flows, passed_by)


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that tokens go through: with what a method put beside them, where it did. Not the vocabulary."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = found and name.startswith(f"{found[-1][0]}.")
        if module is not head and not inside and (is_linear(module) or hasattr(module, "factors")):
            found.append((name, module))
    return found


def _products(name: str, module: Any, below: bool, rows: int | None) -> list[Product]:
    """A layer's, and those of the change beside it.

    Args:
        below: what it is given depends on something that is trained.
    """
    base = module
    while hasattr(base, "base_layer"):
        base = base.base_layer
    learnt = any(weight.requires_grad for key, weight in base.named_parameters() if key == "weight")
    found = [Product(name, shape_of(base), to_input=below, to_weight=learnt, rows=rows)]
    if hasattr(module, "factors"):
        a, b = module.factors()
        inside = below or any(x.requires_grad for key, x in module.named_parameters() if not key.startswith("base_layer"))
        for x, before in ((a, below), (b, inside)):
            shape = (x.shape[0], x.shape[1])
            found.append(Product(name, shape, to_input=before, to_weight=x.requires_grad, own=False, rows=rows))
    return found


def _put_together(model: TrainableModel, input_features: _Heard, flows: bool, passed_by: bool) -> FlopProfile:
    ends = attention_ends([name for name, _ in input_features.calls])
    at = [i for i, (name, _) in enumerate(input_features.calls) if name in ends]
    names = [set(name.split(".")) for name, _ in input_features.calls]
    asks = [i for i in range(at[-1]) if names[i] & set(QUERIES)][-1:] if at else []  # the last layer's query
    tail = {*asks, *range(at[-1], len(input_features.calls))} if at else set()
    products = [
        Product(**{**vars(x), "tail": i in tail and x.rows is None})
        for i, (_, made) in enumerate(input_features.calls)
        for x in made
    ]
    config = model.model.config.get_text_config()  # pyright: ignore
    attentions = []
    for number, i in enumerate(at):
        x, name = input_features.given[i], input_features.calls[i][0]
        attentions.append(Attention(name, x.shape[-1], x.requires_grad, _window(config, number), i == at[-1]))
    return FlopProfile(products, attentions, model.architecture.kind != "encoder", flows, passed_by)


def attention_ends(names: Sequence[str]) -> set[str]:
    """Of layers' names in the order in which they run, those that end an attention: the last of each transformer layer
    that has 'att' in its name, as it has in every family (self_attn.o_proj, attention.output.dense, attn.c_proj ...).

    >>> sorted(attention_ends(["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.1.attn.c_proj"]))
    ['h.0.attn.c_proj', 'h.1.attn.c_proj']
    """
    last = {
        layer_of(f".{x}"): x for x in names if "att" in x.lower() and "lora_" not in x and layer_of(f".{x}") is not None
    }
    return set(last.values())


def _window(config: Any, layer: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[min(layer, len(kinds) - 1)] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


# -- shapes alone -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """What the body of a model is made of."""

    layers: dict[tuple[int, int], int]
    """(D_out, D_in) -> how many layers have it."""
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool


def shapes_in(folder: Any) -> Shapes:
    """Of the model in a folder, from its config alone: no weight is read."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    causal = architecture_of(config).kind != "encoder"
    body = model if causal else stack_of(model)
    layers: dict[tuple[int, int], int] = {}
    for name, module in body.named_modules():
        if is_linear(module) and "pooler" not in name:
            shape = shape_of(module)
            layers[shape] = layers.get(shape, 0) + 1
    text = config.get_text_config()
    heads = text.num_attention_heads
    wide = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shapes(layers, heads, getattr(text, "num_key_value_heads", None) or heads, wide, causal)
