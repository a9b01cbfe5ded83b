"""BERT's layers over rows laid end to end: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, and MiniLM and its kind.

    x --+-- q k v -- attention a segment, both ways -- dense --(+)-- norm --+-- dense -- GELU -- dense --(+)-- norm -- x
        +-------------------------------------------------------+          +----------------------------+

Devlin et al. 2019, arXiv 1810.04805. Everything but the attention is the model's own modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch
from weitiao.model.adapters.low_rank import qkv
from weitiao.model.adapters.module_structure import first_position
from weitiao.model.layers.attention import attend
from weitiao.model.layers.dropout import dropout_rate

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")


def begin(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Batch]:
    """The embeddings [T, D], and what every layer is given beside them."""
    words = stack.get_input_embeddings()(batch.input_ids)  # apart, so that slots are told where they stand in [T]
    positions = batch.position_ids[None] + first_position(stack)
    return stack.embeddings(inputs_embeds=words[None], position_ids=positions)[0].to(dtype), batch


def layers(stack: Any) -> Sequence[nn.Module]:
    """The lowest first."""
    return stack.encoder.layer


def layer(layer: Any, x: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D], where only some rows are wanted."""
    at = layer.attention.self
    heads = (at.num_attention_heads, at.attention_head_size)
    q, k, v = (y.unflatten(-1, heads) for y in qkv(x, rows, at.query, at.key, at.value))
    y = attend(q, k, v, batch, at.scaling, causal=False, dropout=dropout_rate(at.dropout), query_tokens=rows)
    x = layer.attention.output(y.flatten(1), x if rows is None else x[rows])
    return layer.output(layer.intermediate(x), x)


def end(stack: Any, x: Tensor) -> Tensor:
    """Behind the last layer there is nothing."""
    return x


def above(stack: Any) -> Sequence[nn.Module]:
    """What lies above all layers: nothing."""
    return ()
