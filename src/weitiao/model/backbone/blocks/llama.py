"""The Llama family's layers, fast and with few saved tensors: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

    x --+-- RMSNorm -- q k v -- rotary -- attention -- o --(+)--+-- RMSNorm -- gate up -- SwiGLU -- down --(+)-- x
        +---------------------------------------------------+   +------------------------------------------+

Matrix products are the model's own modules, so whatever a method put in their place (LoRA, a quantized layer) is used; only
what lies between them is ours. When a model is loaded, the block is compared with transformers' forward pass (choose.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.backbone.rotary import RotaryTables, attention, mlp, rotary_tables
from weitiao.model.layers.fused import rms_norm, swiglu

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

Context = tuple[RotaryTables, Batch]


def embed(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Context]:
    """The embeddings [T, D], and what all layers need."""
    x = stack.embed_tokens(batch.input_ids).to(dtype)
    return x, (rotary_tables(stack.rotary_emb, x, batch), batch)


def layers(stack: Any) -> Sequence[nn.Module]:
    """The layers, lowest first."""
    return stack.layers


def run_layer(layer: Any, x: Tensor, context: Context, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D] at `rows`."""
    tables, batch = context
    y = attention(layer.self_attn, _norm(layer.input_layernorm, x), tables, batch, _norm, rows)
    x = (x if rows is None else x[rows]) + y
    return x + mlp(layer.mlp, _norm(layer.post_attention_layernorm, x), swiglu)


def finish(stack: Any, x: Tensor) -> Tensor:
    """The final norm."""
    return _norm(stack.norm, x)


def final_modules(stack: Any) -> Sequence[nn.Module]:
    """The modules after the last layer."""
    return (stack.norm,)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
