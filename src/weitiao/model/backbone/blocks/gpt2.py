"""GPT-2's layers over rows laid end to end.

    x --+-- LayerNorm -- qkv in one -- attention a segment -- proj --(+)--+-- LayerNorm -- MLP --(+)-- x
        +--------------------------------------------------------------+  +-------------------+

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sec. 2.3. Everything but the attention is the
model's own modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.layers.attention import attend
from weitiao.model.layers.dropout import dropout_rate

FAMILIES = ("gpt2",)


def begin(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Batch]:
    """The embeddings [T, D], and what every layer is given beside them."""
    return stack.drop(stack.wte(batch.input_ids) + stack.wpe(batch.position_ids)).to(dtype), batch


def layers(stack: Any) -> Sequence[nn.Module]:
    """The lowest first."""
    return stack.h


def layer(layer: Any, x: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D], where only some rows are wanted."""
    at = layer.attn
    q, k, v = (y.unflatten(-1, (-1, at.head_dim)) for y in at.c_attn(layer.ln_1(x)).split(at.split_size, dim=-1))
    x, q = (x, q) if rows is None else (x[rows], q[rows])
    y = attend(q, k, v, batch, at.scaling, dropout=dropout_rate(at.attn_dropout), query_tokens=rows)
    x = x + at.resid_dropout(at.c_proj(y.flatten(1)))
    return x + layer.mlp(layer.ln_2(x))


def end(stack: Any, x: Tensor) -> Tensor:
    """Behind the last layer."""
    return stack.ln_f(x)


def above(stack: Any) -> Sequence[nn.Module]:
    """What lies above all layers."""
    return (stack.ln_f,)
