"""Virtual tokens: positions before every row that a method fills. Soft prompts and prefixes use them.

    ids        v0 v1 v2  the row's tokens           v0 = V, v1 = V + 1 ...: ids beyond the vocabulary of size V
    positions  0  1  2   3 4 5 ...
    filled with          a trained embedding (prompt tuning), or in every layer a trained key and value (prefixes)

They are tokens like all others, so packing, positions, masks, caches and generation need no special case. TrainableModel
puts them before every row and drops their outputs, so the alignment law holds.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.shared_prefix import index_select_fp32_grad
from weitiao.model.adapters.peft_format import peft_task
from weitiao.model.layers.shape_trace import current_trace

VIRTUAL_INDEX: ContextVar[Tensor | None] = ContextVar("virtual_index", default=None)
"""Which virtual token each id of the current forward pass is, -1 for real tokens; None: there are no virtual tokens in it.
A context variable, so that a checkpointed layer that runs again in the backward pass finds the value of the first pass."""


@dataclass
class VirtualTokens:
    """The virtual tokens of a model."""

    count: int
    vocab_size: int
    """Of the model: the first virtual token's id."""
    enabled: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        """What is put before every row; nothing while they are switched off."""
        return tuple(range(self.vocab_size, self.vocab_size + self.count)) if self.enabled else ()

    def set_enabled(self, enabled: bool) -> None:
        self.enabled = enabled

    def fill(self, out: Tensor, values: Tensor) -> Tensor:
        """Put row j of `values` where virtual token j is.

        Args:
            out: [..., T, N]
            values: [P, N]
        """
        index = VIRTUAL_INDEX.get()
        if index is None:
            return out
        rows = index_select_fp32_grad(values.to(out.dtype), index.clamp(min=0))  # [..., T, N]
        return torch.where((index >= 0)[..., None], rows, out)


class VirtualTokenEmbedding(nn.Module):
    """A token embedding that accepts virtual ids: it notes where they are, and fills them if the method has embeddings."""

    def __init__(
        self, base: nn.Embedding, virtual_tokens: VirtualTokens, embeddings: Callable[[], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.base_layer, self.virtual_tokens, self.embeddings = base, virtual_tokens, embeddings

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def num_embeddings(self) -> int:
        return self.base_layer.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [..., T], virtual ones among them -> [..., T, D]."""
        index = ids - self.virtual_tokens.vocab_size
        is_virtual = index >= 0
        has_virtual = current_trace() is not None or bool(is_virtual.any())
        VIRTUAL_INDEX.set(torch.where(is_virtual, index, -1) if has_virtual else None)
        out = self.base_layer(ids.masked_fill(is_virtual, 0) if has_virtual else ids)
        return self.virtual_tokens.fill(out, self.embeddings()) if has_virtual and self.embeddings is not None else out


class VirtualTokenProjection(nn.Module):
    """A linear layer whose output at virtual tokens is given by the method.

    Args:
        values: first output column -> values [P, N] from there on (GPT-2 has q, k and v in one layer).
    """

    def __init__(self, base: nn.Module, virtual_tokens: VirtualTokens, values: dict[int, Callable[[], Tensor]]) -> None:
        super().__init__()
        self.base_layer, self.virtual_tokens, self.values = base, virtual_tokens, values

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if VIRTUAL_INDEX.get() is None or not self.virtual_tokens.enabled:
            return out
        for start, compute in self.values.items():
            values = compute()  # [P, N]
            end = start + values.shape[1]
            filled = self.virtual_tokens.fill(out[..., start:end], values)
            whole_output = values.shape[1] == out.shape[-1]
            out = filled if whole_output else torch.cat([out[..., :start], filled, out[..., end:]], -1)
        return out


def add_virtual_tokens(model: PreTrainedModel, count: int, embeddings: Callable[[], Tensor] | None = None) -> VirtualTokens:
    """Make the model accept `count` virtual tokens, and freeze it.

    Args:
        embeddings: computes the virtual tokens' embeddings [P, D]; None: only later layers fill them.
    """
    model.requires_grad_(False)
    embedding: Any = model.get_input_embeddings()
    virtual_tokens = VirtualTokens(count, embedding.num_embeddings)
    name = next(name for name, module in model.named_modules() if module is embedding)
    model.set_submodule(name, VirtualTokenEmbedding(embedding, virtual_tokens, embeddings))
    return virtual_tokens


def random_token_ids(vocab_size: int, count: int) -> Tensor:
    """[count] token ids from the vocabulary, from torch's generator."""
    return torch.randint(0, vocab_size, (count,))


def prompt_as_peft(model: PreTrainedModel, prompt: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's config and tensors of a finished soft prompt [P, D]."""
    text_config: Any = model.config.get_text_config()
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": peft_task(model),
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": text_config.num_attention_heads,
        "num_layers": text_config.num_hidden_layers,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    return config, {"prompt_embeddings": prompt.detach()}
