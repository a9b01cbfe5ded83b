"""A model's layers, one after another: all of them, or from a layer on, or up to one; the last only where it is asked.

    embed -- layer 0 -- ... -- layer k-1 --|-- layer k -- ... -- layer L-1 -- end
             frozen: run once and kept     |   what is trained   its keys and values for every token, all else
             (model/frozen.py)             |                     only at the rows that somebody scores

A block (one file in blocks/) says how a family embeds, runs a layer and ends; whatever a method put in the place of a
matrix product is used, since blocks call the model's own modules.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from weitiao.core.batch import BELOW, Batch
from weitiao.core.tunable import Body
from weitiao.model.anatomy import stack_of
from weitiao.model.recompute import through

FEW = 0.7  # of all tokens: where more rows are asked for, leaving the others out saves nothing


def body_of(block: ModuleType, model: Any, dtype: torch.dtype) -> Body:
    """The whole way through a model by a block."""

    def body(batch: Batch, rows: Tensor | None = None) -> Tensor:
        stack = stack_of(model)
        layers, below = list(block.layers(stack)), batch.more.get(BELOW)
        x, given = block.begin(stack, batch, dtype)
        if below is not None:
            x, layers = below.to(dtype), layers[first_trained(model, block) :]
        few = rows is not None and 0 < len(rows) <= FEW * batch.tokens
        for layer in layers[:-1]:
            x = through(layer, block.layer, x, given, None)
        x = through(layers[-1], block.layer, x, given, rows if few else None)
        return block.end(stack, x if few or rows is None else x[rows])

    return body


def lower_of(block: ModuleType, model: Any, dtype: torch.dtype) -> tuple[int, Callable[[Batch], Tensor]]:
    """(how many layers lie below the first trained one, batch -> what they give [T, D])."""
    many = first_trained(model, block)

    @torch.no_grad()
    def lower(batch: Batch) -> Tensor:
        stack = stack_of(model)
        x, given = block.begin(stack, batch, dtype)
        for layer in list(block.layers(stack))[:many]:
            x = block.layer(layer, x, given, None)
        return x

    return many, lower


def first_trained(model: Any, block: ModuleType) -> int:
    """How many of the lowest layers hold nothing that is trained; 0 where the embeddings are trained."""
    stack = stack_of(model)
    layers = list(block.layers(stack))
    frozen = next((i for i, x in enumerate(layers) if _trained(x)), len(layers) - 1)
    within = {id(p) for x in (*layers, *block.above(stack)) for p in x.parameters()}
    lower = [p for p in stack.parameters() if id(p) not in within]
    return 0 if any(p.requires_grad for p in lower) else frozen


def _trained(module: Any) -> bool:
    return any(p.requires_grad for p in module.parameters())
