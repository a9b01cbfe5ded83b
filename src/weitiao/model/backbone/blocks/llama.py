"""The Llama family's layers, written to run fast and keep little: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

    x --+-- RMSNorm -- q k v -- rotary -- attention a segment -- o --(+)--+-- RMSNorm -- gate up -- SwiGLU -- down --(+)-- x
        +-------------------------------------------------------------+   +------------------------------------------+

It runs the model's own modules for every matrix product, so whatever a method put in their place (LoRA, a quantised
layer) is used; only what lies between them is ours. Rows are [T, D] end to end. Proven equal to transformers' own
forward when the model is loaded (backbone/choose.py) and by tests/invariants.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.backbone.rotary import RotaryTables, attention, mlp, rotary_tables
from weitiao.model.layers.fused import RMSNorm, SwiGLU

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

Given = tuple[RotaryTables, Batch]


def begin(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Given]:
    """The embeddings [T, D], and what every layer is given beside them."""
    x = stack.embed_tokens(batch.input_ids).to(dtype)
    return x, (rotary_tables(stack.rotary_emb, x, batch), batch)


def layers(stack: Any) -> Sequence[nn.Module]:
    """The lowest first."""
    return stack.layers


def layer(layer: Any, x: Tensor, given: Given, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D], where only some rows are wanted."""
    turn, batch = given
    y = attention(layer.self_attn, _norm(layer.input_layernorm, x), turn, batch, _norm, rows)
    x = (x if rows is None else x[rows]) + y
    return x + mlp(layer.mlp, _norm(layer.post_attention_layernorm, x), SwiGLU.apply)


def end(stack: Any, x: Tensor) -> Tensor:
    """Behind the last layer."""
    return _norm(stack.norm, x)


def above(stack: Any) -> Sequence[nn.Module]:
    """What lies above all layers."""
    return (stack.norm,)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
