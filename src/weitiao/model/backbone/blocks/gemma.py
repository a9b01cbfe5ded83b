"""Gemma 2's and Gemma 3's layers, fast and with few saved tensors.

    x --+-- norm -- q k v -- (3: norm) -- rotary -- attention (window, softcap) -- o -- norm --(+)--
        +------------------------------------------------------------------------------------+
      --+-- norm -- gate up -- GeGLU -- down -- norm --(+)-- x         norm: (1 + w) x / rms(x), four per layer
        +-------------------------------------------+

Team Gemma 2024, arXiv 2408.00118, sec. 2; 2025, arXiv 2503.19786, sec. 2. Some layers attend to a window only; in Gemma 3
these have a rotary embedding of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.backbone.rotary import RotaryTables, attention, mlp, rotary_tables
from weitiao.model.layers.fused import geglu, rms_norm

FAMILIES = ("gemma2", "gemma3_text")

Context = tuple[dict[str, RotaryTables], Batch]
"""(layer type -> its rotary tables, the batch)."""


def embed(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Context]:
    """The embeddings [T, D], and what all layers need."""
    x = stack.embed_tokens(batch.input_ids).to(dtype)
    by_type = stack.config.model_type == "gemma3_text"  # in Gemma 2 all layers rotate alike
    tables = {
        layer_type: rotary_tables(stack.rotary_emb, x, batch, *([layer_type] if by_type else []))
        for layer_type in set(stack.config.layer_types)
    }
    return x, (tables, batch)


def layers(stack: Any) -> Sequence[nn.Module]:
    """The layers, lowest first."""
    return stack.layers


def run_layer(layer: Any, x: Tensor, context: Context, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D] at `rows`."""
    (tables, batch), module = context, layer.self_attn
    y = attention(module, _norm(layer.input_layernorm, x), tables[module.layer_type], batch, _norm, rows)
    x = (x if rows is None else x[rows]) + _norm(layer.post_attention_layernorm, y)
    y = mlp(layer.mlp, _norm(layer.pre_feedforward_layernorm, x), geglu)
    return x + _norm(layer.post_feedforward_layernorm, y)


def finish(stack: Any, x: Tensor) -> Tensor:
    """The final norm."""
    return _norm(stack.norm, x)


def final_modules(stack: Any) -> Sequence[nn.Module]:
    """The modules after the last layer."""
    return (stack.norm,)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.eps, 1.0)
