"""The Llama family's layers, written to run fast and keep little: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

    x --+-- RMSNorm -- q k v -- rotary -- attention a segment -- o --(+)--+-- RMSNorm -- gate up -- SwiGLU -- down --(+)-- x
        +-------------------------------------------------------------+   +------------------------------------------+

It runs the model's own modules for every matrix product, so whatever a method put in their place (LoRA, a quantised
layer) is used; only what lies between them is ours. Rows are [T, D] end to end. Proven equal to transformers' own
forward when the model is loaded (model/load.py: `choose_body`) and by tests/laws.
"""

from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.attention import attend
from weitiao.model.fused import RMSNorm, Rotary, SwiGLU
from weitiao.model.recompute import through

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def hidden(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The last hidden states [T, D], after the final norm.

    Args:
        model: transformers' ...ForCausalLM of one of FAMILIES.
        dtype: what the residual stream is computed in.
    """
    inner: Any = model.get_decoder()  # pyright: ignore[reportCallIssue]
    x = inner.embed_tokens(batch.input_ids).to(dtype)  # [T, D]
    cos, sin = inner.rotary_emb(x[None], batch.position_ids[None])  # [1, T, d]
    half = cos.shape[-1] // 2
    cos, sin = cos[0, :, None, :half].to(dtype), sin[0, :, None, :half].to(dtype)  # [T, 1, d / 2]
    for layer in inner.layers:
        x = through(layer, _layer, x, cos, sin, batch)
    return _norm(inner.norm, x)


def _layer(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
    x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), cos, sin, batch)
    return x + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, x))


def _attention(at: Any, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
    d = at.head_dim
    q, k, v = (project(x).unflatten(-1, (-1, d)) for project in (at.q_proj, at.k_proj, at.v_proj))  # [T, H, d]
    if hasattr(at, "q_norm"):  # Qwen 3
        q, k = _norm(at.q_norm, q), _norm(at.k_norm, k)
    q, k = Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)
    window, dropout = getattr(at, "sliding_window", None), at.attention_dropout if at.training else 0.0
    y = attend(q, k, v, batch, at.scaling, window=window, dropout=dropout)  # pyright: ignore
    return at.o_proj(y.flatten(1))


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(SwiGLU.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def _norm(norm: Any, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, norm.weight, norm.variance_epsilon)  # pyright: ignore[reportReturnType]
