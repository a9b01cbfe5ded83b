"""Slots: places before every row that a method fills with what it learnt. Soft prompts and prefixes stand in them.

    ids      s0 s1 s2  the user's tokens          s0 = V, s1 = V + 1 ...: ids beyond the vocabulary, V words
    position  0  1  2   3 4 5 ...
    what the model gets there:  a learnt embedding (prompt tuning), or in every layer a learnt key and value (prefixes)

A slot is a token like any other: packing, positions, masks, caches and generation need not know of it. TrainableModel puts
slots before every row and takes their outputs away again, so the alignment law holds.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.shared_prefix import index_select_fp32_grad
from weitiao.model.adapters.peft_format import peft_task
from weitiao.model.adapters.surgery import set_submodule

PLACES: ContextVar[Tensor | None] = ContextVar("places", default=None)
"""Of the ids that run now: which slot each is, -1 for words. None where there is no slot among them. A context variable,
so that a layer which runs once more in the backward pass finds the places of its own forward pass."""


@dataclass
class VirtualTokens:
    """How many there are, and whether they are in use."""

    count: int
    size: int
    """Of the vocabulary: the first slot's id."""
    on: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        """What stands before every row."""
        return tuple(range(self.size, self.size + self.count)) if self.on else ()

    def set_enabled(self, on: bool) -> None:
        self.on = on

    def fill(self, out: Tensor, learnt: Tensor) -> Tensor:
        """out [..., T, N] with row j of learnt [P, N] where slot j stands."""
        places = PLACES.get()
        if places is None:
            return out
        rows = index_select_fp32_grad(learnt.to(out.dtype), places.clamp(min=0))  # [..., T, N]
        return torch.where((places >= 0)[..., None], rows, out)


class VirtualTokenEmbedding(nn.Module):
    """The token embedding, which knows slots: it sees which ids they are, and may fill them."""

    def __init__(
        self, base: nn.Embedding, virtual_tokens: VirtualTokens, learnt: Callable[[], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.base_layer, self.virtual_tokens, self.learnt = base, virtual_tokens, learnt

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def num_embeddings(self) -> int:
        return self.base_layer.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [..., T], slots among them -> [..., T, D]."""
        places = ids - self.virtual_tokens.size
        here = bool((places >= 0).any())
        PLACES.set(torch.where(places >= 0, places, -1) if here else None)
        out = self.base_layer(ids.masked_fill(places >= 0, 0) if here else ids)
        return self.virtual_tokens.fill(out, self.learnt()) if here and self.learnt is not None else out


class VirtualTokenProjection(nn.Module):
    """A linear layer whose output at slots is learnt: columns `begin` to `end` of it (GPT-2 has q, k and v in one)."""

    def __init__(self, base: nn.Module, virtual_tokens: VirtualTokens, learnt: dict[int, Callable[[], Tensor]]) -> None:
        super().__init__()
        self.base_layer, self.virtual_tokens, self.learnt = base, virtual_tokens, learnt

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if PLACES.get() is None or not self.virtual_tokens.on:
            return out
        for begin, make in self.learnt.items():
            value = make()  # [P, N]
            end = begin + value.shape[1]
            filled = self.virtual_tokens.fill(out[..., begin:end], value)
            out = filled if value.shape[1] == out.shape[-1] else torch.cat([out[..., :begin], filled, out[..., end:]], -1)
        return out


def add_virtual_tokens(model: Any, count: int, learnt: Callable[[], Tensor] | None = None) -> VirtualTokens:
    """Make the model know `count` slots; freeze all else."""
    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    virtual_tokens = VirtualTokens(count, embedding.num_embeddings)
    name = next(name for name, module in model.named_modules() if module is embedding)
    set_submodule(model, name, VirtualTokenEmbedding(embedding, virtual_tokens, learnt))
    return virtual_tokens


def some_words(size: int, count: int) -> Tensor:
    """`count` token ids to start from, drawn from the vocabulary by torch's generator."""
    return torch.randint(0, size, (count,))


def prompt_as_peft(model: Any, prompt: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A finished soft prompt [P, D] as PEFT's prompt tuning stores it: config and tensors."""
    config = model.config.get_text_config()
    about = {
        "peft_type": "PROMPT_TUNING",
        "task_type": peft_task(model),
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    return about, {"prompt_embeddings": prompt.detach()}
