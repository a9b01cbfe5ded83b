"""Gemma 2's and Gemma 3's layers, written to run fast and keep little.

    x --+-- norm -- q k v -- (3: norm) -- rotary -- attention (window, softcap) -- o -- norm --(+)--
        +------------------------------------------------------------------------------------+
      --+-- norm -- gate up -- GeGLU -- down -- norm --(+)-- x         norm: (1 + w) x / rms(x), four a layer
        +-------------------------------------------+

Team Gemma 2024, arXiv 2408.00118, sec. 2; 2025, arXiv 2503.19786, sec. 2. Some of Gemma 3's layers look back over a window
only, and turn by angles of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.backbone.rotary import RotaryTables, attention, mlp, rotary_tables
from weitiao.model.layers.fused import GeGLU, RMSNorm

FAMILIES = ("gemma2", "gemma3_text")

Given = tuple[dict[str, RotaryTables], Batch]


def begin(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Given]:
    """The embeddings [T, D], and what every layer is given beside them: turns by the layer's type."""
    x = stack.embed_tokens(batch.input_ids).to(dtype)
    many = stack.config.model_type == "gemma3_text"  # Gemma 2 turns alike in every layer
    kinds = {
        kind: rotary_tables(stack.rotary_emb, x, batch, *([kind] if many else [])) for kind in set(stack.config.layer_types)
    }
    return x, (kinds, batch)


def layers(stack: Any) -> Sequence[nn.Module]:
    """The lowest first."""
    return stack.layers


def layer(layer: Any, x: Tensor, given: Given, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D], where only some rows are wanted."""
    (kinds, batch), at = given, layer.self_attn
    y = attention(at, _norm(layer.input_layernorm, x), kinds[at.layer_type], batch, _norm, rows)
    x = (x if rows is None else x[rows]) + _norm(layer.post_attention_layernorm, y)
    y = mlp(layer.mlp, _norm(layer.pre_feedforward_layernorm, x), GeGLU.apply)
    return x + _norm(layer.post_feedforward_layernorm, y)


def end(stack: Any, x: Tensor) -> Tensor:
    """Behind the last layer."""
    return _norm(stack.norm, x)


def above(stack: Any) -> Sequence[nn.Module]:
    """What lies above all layers."""
    return (stack.norm,)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, norm.weight, norm.eps, 1.0)
