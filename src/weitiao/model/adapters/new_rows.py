"""Embeddings of new tokens: rows behind the old ones, trained with any method, while the old rows stay where they are.

    embedding  [V, D]  frozen, as the method leaves it        ids -> rows
               [N, D]  new_rows, trained in fp32              ids of new tokens -> rows of new_rows
    lm head    logits [T, V + N]: the frozen rows' products, and those of new_rows

A new row starts as the mean of the old tokens that its token is made of (Chinese-LLaMA, Cui et al. 2023, arXiv 2304.08177,
sec. 2.2 extends; the mean: Gee et al. 2022, "Fast Vocabulary Transfer", arXiv 2402.09977, sec. 3.2), as the mean of all old
rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"), or at random with the old rows'
spread. Where the method trains the whole embedding (full fine-tuning), nothing is added: all rows are its own.

Tied stays tied: one set of new rows serves both ends. Two matrices have a set each. Stored in PEFT's format: as
trainable_token_indices with LoRA, as whole modules (modules_to_save) with PEFT's other methods that change layers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment, ParameterGroup
from weitiao.model.adapters.peft_format import PREFIX

Init = Literal["mean", "global_mean", "random"]
ROWS, OWNER = "new_rows", "new_rows_owner"
TOKEN_DELTA = "token_adapter.trainable_tokens_delta"  # PEFT's name
WITH_TOKEN_INDICES = ("LORA", "ADALORA")  # PEFT types that train single rows of an embedding
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # PEFT types that save nothing else


@torch.no_grad()
def add_rows(model: PreTrainedModel, pieces: Sequence[Sequence[int]], first: int, init: Init, seed: int) -> None:
    """Give the embedding, and an output head, rows for new tokens, in place: modules and parameters stay the same objects.

    Args:
        pieces: of each new token the old ids it is made of.
        first: the id of the first new token.
        seed: of random rows.

    Raises:
        ModelError: the model's embedding is none that rows can be added to.
    """
    embedding, head = embeddings_of(model)
    weights: dict[int, nn.Parameter] = {id(x.weight): x.weight for x in (embedding, head) if x is not None}
    if head is not None and getattr(head, "bias", None) is not None:
        weights[id(head.bias)] = head.bias
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        rows = _start(weight.data[:first], pieces, init, generator)
        unused = weight.data[first + len(pieces) :]  # rows without a token, that some models have
        weight.data = torch.cat([weight.data[:first], rows.to(weight.data), unused])
    size = len(embedding.weight)
    embedding.num_embeddings = size
    if head is not None:
        head.out_features = size
    for config in (model.config, model.config.get_text_config()):
        config.vocab_size = size


def _start(old: Tensor, pieces: Sequence[Sequence[int]], init: Init, generator: torch.Generator) -> Tensor:
    """[N, D] (of a bias [N]) in fp32."""
    old = old.float()
    if init == "global_mean":
        return old.mean(0).expand(len(pieces), *old.shape[1:]).clone()
    if init == "random":
        shape = (len(pieces), *old.shape[1:])
        return (torch.randn(shape, generator=generator) * float(old.std())).to(old.device)
    ids = torch.tensor([x for ids in pieces for x in ids], device=old.device)
    counts = torch.tensor([len(ids) for ids in pieces], device=old.device)
    owners = torch.arange(len(pieces), device=old.device).repeat_interleave(counts)
    sums = old.new_zeros(len(pieces), *old.shape[1:]).index_add_(0, owners, old[ids])
    return sums / counts.view(-1, *[1] * (old.ndim - 1))


def embeddings_of(model: Any) -> tuple[Any, Any]:
    """(the token embedding, the output head or None), below what a method has put around them.

    Raises:
        ModelError: it is packed into fewer bits, or of another kind.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    while hasattr(embedding, "base_layer"):
        embedding = embedding.base_layer
    while head is not None and hasattr(head, "base_layer"):
        head = head.base_layer
    sound = isinstance(embedding, nn.Embedding) and (head is None or isinstance(head, nn.Linear))
    if not sound or not embedding.weight.is_floating_point() or embedding.max_norm is not None:
        raise ModelError(
            "vocabulary: the token embedding of {model} ({kind}) is none that rows can be added to",
            model=type(model).__name__,
            kind=type(embedding).__name__,
        )
    if head is not None and len(head.weight) != len(embedding.weight):
        raise ModelError(
            "vocabulary: the output head of {model} has {head:,} rows, its embedding {rows:,}: no rows can be added",
            model=type(model).__name__,
            head=len(head.weight),
            rows=len(embedding.weight),
        )
    return embedding, head


def train_new_rows(
    model: PreTrainedModel, attachment: Attachment, first: int, count: int, with_head: bool = True
) -> Attachment:
    """Train the rows of new tokens besides what a method trains.

    Args:
        attachment: of the method; the model has it attached.
        first, count: ids of the new tokens.
        with_head: also an untied output head's.

    Raises:
        ModelError: the family's embedding does more than look rows up.
    """
    embedding, head = embeddings_of(model)
    trained = {id(x) for name, x in model.named_parameters() if name in attachment.trainable}
    tied = head is not None and head.weight is embedding.weight
    layers: list[NewRows] = []
    if id(embedding.weight) not in trained:
        layers.append(NewRows(embedding, first, count, head if tied else None))
    if head is not None and not tied and with_head and id(head.weight) not in trained:
        layers.append(NewRows(head, first, count))
    if not layers:
        return attachment
    own = {id(x.rows) for x in layers}
    names = {name for name, x in model.named_parameters() if id(x) in own}

    def set_enabled(on: bool) -> None:
        assert attachment.set_enabled is not None
        attachment.set_enabled(on)
        for layer in layers:
            layer.on = on

    def merge() -> None:
        assert attachment.merge is not None
        attachment.merge()
        for layer in layers:
            layer.merge()

    def groups(step: int) -> list[ParameterGroup]:
        assert attachment.groups is not None
        return [*attachment.groups(step), {"names": sorted(names)}]

    return replace(
        attachment,
        trainable=attachment.trainable | names,
        groups=groups if attachment.groups else None,
        set_enabled=set_enabled if attachment.set_enabled else None,
        merge=merge if attachment.merge else None,
        **_exchange(model, attachment, layers, tied),
    )


class NewRows:
    """The trained rows of an embedding, which hooks put in the place of the frozen ones; or of a linear output head.

    The module keeps its class and its weight. The rows are a parameter of it, `new_rows`: that is how they are moved,
    counted and saved.
    """

    def __init__(self, module: Any, first: int, count: int, tied: Any = None) -> None:
        """
        Args:
            tied: the output head that has the embedding's weight.
        """
        self.modules = [module, *([tied] if tied is not None else [])]
        self.first, self.last, self.on = first, first + count, True
        self.rows = nn.Parameter(module.weight.detach()[first : self.last].float().clone())
        self._hooks: list[Any] = []
        for x in self.modules:
            probe = self._probe(x)
            x.register_parameter(ROWS, self.rows)
            setattr(x, OWNER, self)
            hook = self._replace_embeddings if isinstance(x, nn.Embedding) else self._replace_logits
            self._hooks.append(x.register_forward_hook(hook, prepend=True))
            if not torch.equal(probe, self._probe(x)):
                self.remove()
                raise ModelError(
                    "vocabulary: {module} does more than look up rows or multiply with them, so new ones cannot be trained "
                    "beside the old",
                    module=type(x).__name__,
                )
        self._whole: tuple[Any, Tensor] | None = None

    def whole(self) -> Tensor:
        """[V, D]: the weight with the trained rows in it; differentiable in them."""
        weight = self.modules[0].weight
        if not self.on:
            return weight
        if torch.is_grad_enabled() and self.rows.requires_grad:
            return self._put_in(weight)
        version = [(x.data_ptr(), x._version, x.dtype) for x in (weight, self.rows)]
        if self._whole is None or self._whole[0] != version:
            self._whole = version, self._put_in(weight).detach()
        return self._whole[1]

    def _put_in(self, weight: Tensor) -> Tensor:
        return torch.cat([weight[: self.first], self.rows.to(weight.dtype), weight[self.last :]])

    @torch.no_grad()
    def merge(self) -> None:
        """Copy the trained rows into the weight; the plain module remains."""
        weight = self.modules[0].weight
        weight.data[self.first : self.last] = self.rows.to(weight.dtype)
        self.remove()

    def remove(self) -> None:
        """Take rows and hooks away."""
        for hook in self._hooks:
            hook.remove()
        for module in self.modules:
            module._parameters.pop(ROWS, None)
            module.__dict__.pop(OWNER, None)

    def _replace_embeddings(self, module: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        if not self.on:
            return out
        index = inputs[0] - self.first
        is_new = (index >= 0) & (index < self.last - self.first)
        in_graph = torch.is_grad_enabled() and self.rows.requires_grad  # then rows that do not occur get zeros, not None
        if not in_graph and not bool(is_new.any()):
            return out
        scale = getattr(module, "embed_scale", None)  # Gemma
        rows = nn.functional.embedding(index.clamp(0, self.last - self.first - 1), self.rows).to(out.dtype)
        rows = rows if scale is None else rows * torch.as_tensor(scale).to(rows)
        return torch.where(is_new[..., None], rows, out)

    def _replace_logits(self, module: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        if not self.on:
            return out
        bias = None if module.bias is None else module.bias[self.first : self.last]
        logits = nn.functional.linear(inputs[0], self.rows.to(inputs[0].dtype), bias)
        return torch.cat([out[..., : self.first], logits.to(out.dtype), out[..., self.last :]], -1)

    @torch.no_grad()
    def _probe(self, module: Any) -> Tensor:
        """What the module makes of a few new tokens, or of a hidden state."""
        if isinstance(module, nn.Embedding):
            return module(torch.tensor([self.first, self.last - 1, 0], device=module.weight.device)).clone()
        state = torch.linspace(-1, 1, module.in_features, device=module.weight.device, dtype=module.weight.dtype)
        out = module(state[None])
        return torch.cat([out[:, : self.first], out[:, self.last :]], -1)  # products of other blocks are rounded otherwise


def whole_weight(module: Any) -> Tensor:
    """The weight of an embedding or output head, with the trained rows of new tokens where it has some."""
    new_rows: NewRows | None = module.__dict__.get(OWNER)
    return module.weight if new_rows is None else new_rows.whole()


def num_frozen_rows(module: Any) -> int:
    """How many of its first rows take no gradient, because only new ones are trained."""
    new_rows: NewRows | None = module.__dict__.get(OWNER)
    return 0 if new_rows is None else new_rows.first


# -- PEFT's format ----------------------------------------------------------------------------------------------------


def _exchange(model: PreTrainedModel, attachment: Attachment, layers: Sequence[NewRows], tied: bool) -> dict[str, Any]:
    """as_peft and from_peft of the attachment with new rows."""
    names = {id(x): name.replace(".base_layer", "") for name, x in model.named_modules()}
    of_method, into_method = attachment.as_peft, attachment.from_peft
    if of_method is None or of_method()[0].get("peft_type") in PROMPTS:
        return {"as_peft": None, "from_peft": None}

    def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
        config, tensors = of_method()
        by_token = config["peft_type"] in WITH_TOKEN_INDICES
        for layer in layers:
            for module in layer.modules[: 1 if by_token else None]:
                name = names[id(module)]
                leaf = name.rpartition(".")[2]
                if by_token:
                    indices = {**(config.get("trainable_token_indices") or {}), leaf: [*range(layer.first, layer.last)]}
                    config = {**config, "trainable_token_indices": indices}
                    tensors = {**tensors, f"{PREFIX}{name}.{TOKEN_DELTA}": layer.rows.detach()}
                else:
                    config = {**config, "modules_to_save": [*(config.get("modules_to_save") or ()), leaf]}
                    tensors = {**tensors, f"{PREFIX}{name}.weight": layer.whole().detach().clone()}
        return config, tensors

    def from_peft(tensors: dict[str, Tensor]) -> None:
        assert into_method is not None
        rest = dict(tensors)
        for layer in layers:
            name = PREFIX + names[id(layer.modules[0])]
            rows = rest.pop(f"{name}.{TOKEN_DELTA}", None)
            if rows is None and f"{name}.weight" in rest:
                rows = rest[f"{name}.weight"][layer.first : layer.last]
            if rows is None or rows.shape != layer.rows.shape:
                raise ModelError("the adapter has no embeddings for its {n:,} new tokens", n=layer.last - layer.first)
            with torch.no_grad():
                layer.rows.copy_(rows)
            for module in layer.modules:
                rest.pop(f"{PREFIX}{names[id(module)]}.weight", None)
        into_method(rest)

    return {"as_peft": as_peft, "from_peft": from_peft if into_method else None}


def without_new_rows(config: dict[str, Any]) -> dict[str, Any]:
    """A PEFT config without what it says of new tokens' embeddings, which is known from the tokenizer beside it."""
    return {key: x for key, x in config.items() if key not in ("trainable_token_indices", "modules_to_save")}
