"""BERT's layers on rows packed end to end: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, and MiniLM and its kind.

    x --+-- q k v -- attention, both ways -- dense --(+)-- norm --+-- dense -- GELU -- dense --(+)-- norm -- x
        +------------------------------------------------+        +----------------------------+

Devlin et al. 2019, arXiv 1810.04805. All but the attention is the model's own modules.
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


def embed(stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Batch]:
    """The embeddings [T, D], and what all layers need."""
    # called with [T], not [1, T], so that virtual tokens note their positions in [T]
    token_embeddings = stack.get_input_embeddings()(batch.input_ids)
    positions = batch.position_ids[None] + first_position(stack)
    return stack.embeddings(inputs_embeds=token_embeddings[None], position_ids=positions)[0].to(dtype), batch


def layers(stack: Any) -> Sequence[nn.Module]:
    """The layers, lowest first."""
    return stack.encoder.layer


def run_layer(layer: Any, x: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
    """One layer, [T, D] -> [T, D]; or [N, D] at `rows`."""
    module = layer.attention.self
    heads = (module.num_attention_heads, module.attention_head_size)
    q, k, v = (y.unflatten(-1, heads) for y in qkv(x, rows, module.query, module.key, module.value))  # [T, H, d]
    dropout = dropout_rate(module.dropout)
    y = attend(q, k, v, batch, module.scaling, causal=False, dropout=dropout, query_tokens=rows)
    x = layer.attention.output(y.flatten(1), x if rows is None else x[rows])
    return layer.output(layer.intermediate(x), x)


def finish(stack: Any, x: Tensor) -> Tensor:
    """Nothing follows the last layer."""
    return x


def final_modules(stack: Any) -> Sequence[nn.Module]:
    """The modules after the last layer: none."""
    return ()
