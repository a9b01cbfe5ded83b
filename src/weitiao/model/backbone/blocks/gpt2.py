"""GPT-2's layers on rows packed end to end.

    x --+-- LayerNorm -- qkv in one -- attention -- proj --(+)--+-- LayerNorm -- MLP --(+)-- x
        +----------------------------------------------------+  +-------------------+

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sec. 2.3. All but the attention is the model's
own modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.layers.attention import attend
from weitiao.model.layers.dropout import dropout_rate

FAMILIES = ("gpt2",)


def embed(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Batch]:
    """The embeddings [T, D], and what all layers need."""
    return stack.drop(stack.wte(batch.input_ids) + stack.wpe(batch.position_ids)).to(dtype), batch


def layers(stack: Any) -> Sequence[nn.Module]:
    """The layers, lowest first."""
    return stack.h


def run_layer(layer: Any, x: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D] at `rows`."""
    module = layer.attn
    projected = module.c_attn(layer.ln_1(x)).split(module.split_size, dim=-1)
    q, k, v = (y.unflatten(-1, (-1, module.head_dim)) for y in projected)  # [T, H, d]
    x, q = (x, q) if rows is None else (x[rows], q[rows])
    y = attend(q, k, v, batch, module.scaling, dropout=dropout_rate(module.attn_dropout), query_tokens=rows)
    x = x + module.resid_dropout(module.c_proj(y.flatten(1)))
    return x + layer.mlp(layer.ln_2(x))


def finish(stack: Any, x: Tensor) -> Tensor:
    """The final norm."""
    return stack.ln_f(x)


def final_modules(stack: Any) -> Sequence[nn.Module]:
    """The modules after the last layer."""
    return (stack.ln_f,)
