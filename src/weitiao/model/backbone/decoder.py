"""A model's layers, one after another: all of them, or from a layer on, or up to one; the last only where it is asked.

    embed -- layer 0 -- ... -- layer k-1 --|-- layer k -- ... -- layer L-1 -- end
             frozen: run once and kept     |   what is trained   its keys and values for every token, all else
             (model/frozen.py)             |                     only at the rows that somebody scores

A block (one file in blocks/) says how a family embeds, runs a layer and ends; whatever a method put in the place of a
matrix product is used, since blocks call the model's own modules.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weitiao.core.batch import FROZEN_STATES, Batch
from weitiao.core.lm_head import ENOUGH
from weitiao.core.shared_prefix import PrefixSharedBatch, index_select_fp32_grad, share_prefixes
from weitiao.model.adapters.module_structure import architecture_of, layer_stack
from weitiao.model.layers.gradient_checkpointing import run_checkpointed
from weitiao.model.layers.saved_tensors import computing_in

FEW = 0.7  # of all tokens: where more rows are asked for, leaving the others out saves nothing


class Block(Protocol):
    """One file in model/backbone/blocks/: how a family of models embeds, runs a layer and ends."""

    FAMILIES: tuple[str, ...]
    """transformers' model types."""

    def begin(self, stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Any]: ...

    def layers(self, stack: Any) -> Sequence[nn.Module]: ...

    def layer(self, layer: Any, x: Tensor, given: Any, rows: Tensor | None) -> Tensor: ...

    def end(self, stack: Any, x: Tensor) -> Tensor: ...

    def above(self, stack: Any) -> Sequence[nn.Module]: ...


@dataclass
class BlockBackbone:
    """The whole way through a model by a block; a Body."""

    block: Block
    model: Any
    dtype: torch.dtype
    """What the residual stream is computed in."""
    below: int = 0
    """So many layers are left out where a batch brings what they gave."""
    laid: int = 0
    """Tokens that batches had while the model trained."""
    spared: int = 0
    """Of these, how many began a row as another one does, and did not run."""

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        batch = self.merged(batch)
        if self.model.training:
            self.laid += batch.tokens
            self.spared += batch.tokens - len(batch.input_ids)
        if not isinstance(batch, PrefixSharedBatch):
            return self._run(batch, rows)
        if rows is None:
            return batch.expand(self._run(batch, None))
        asked, where = batch.token_index[rows].unique(return_inverse=True)
        return index_select_fp32_grad(self._run(batch, asked), where)

    def merged(self, batch: Batch) -> Batch:
        """The batch as it runs: with what its rows begin with in common once, where that changes nothing.

        Not on a GPU, which would wait for the host to compare rows: nobody has measured that yet.
        """
        chance = self.model.training and self.drops
        if chance or batch.input_ids.is_cuda or architecture_of(self.model.config).kind == "encoder":
            return batch
        return share_prefixes(batch)

    @cached_property
    def drops(self) -> bool:
        """Chance has a say in what a layer gives, while the model trains."""
        about = self.model.config.get_text_config().to_dict()
        return any(x > 0 for key, x in about.items() if "drop" in key and isinstance(x, float)) or any(
            x.p > 0 for x in self.model.modules() if isinstance(x, nn.Dropout)
        )

    def _run(self, batch: Batch, rows: Tensor | None) -> Tensor:
        block, stack = self.block, layer_stack(self.model)
        with computing_in(self.model, self.dtype):
            x, given = block.begin(stack, batch, self.dtype)
            layers, before = list(block.layers(stack)), batch.more.get(FROZEN_STATES)
            if before is not None:
                x = batch.compact(before) if isinstance(batch, PrefixSharedBatch) else before
                layers = layers[self.below :]
            few = None if rows is None else _few(rows, len(x))
            for layer in layers[:-1]:
                x = run_checkpointed(layer, block.layer, x, given, None)
            x = run_checkpointed(layers[-1], block.layer, x, given, few)
            if rows is not None:
                x = x[rows] if few is None else x[: len(rows)]
            return block.end(stack, x)

    @torch.no_grad()
    def lower(self, batch: Batch) -> Tensor:
        """[T, D]: what the layers below give."""
        stack, batch = layer_stack(self.model), self.merged(batch)
        with computing_in(self.model, self.dtype):
            x, given = self.block.begin(stack, batch, self.dtype)
            for layer in list(self.block.layers(stack))[: self.below]:
                x = self.block.layer(layer, x, given, None)
        return batch.expand(x) if isinstance(batch, PrefixSharedBatch) else x

    def frozen(self, trained: Collection[nn.Parameter]) -> int:
        """How many of the lowest layers hold nothing that is trained, if nothing below them is either; at most all but
        one."""
        stack, mine = layer_stack(self.model), {id(p) for p in trained}
        layers = list(self.block.layers(stack))
        known = {id(p) for x in (*layers, *self.block.above(stack)) for p in x.parameters()}
        if any(id(p) in mine for p in stack.parameters() if id(p) not in known):
            return 0
        holds = [any(id(p) in mine for p in x.parameters()) for x in layers]
        return min(holds.index(True) if True in holds else len(layers), len(layers) - 1)


def _few(rows: Tensor, tokens: int) -> Tensor | None:
    """The rows that the last layer runs; on a CPU the last one repeated until products add up as those of many rows do
    (attention on a GPU takes no row twice). None: all of them, since that is hardly more."""
    many = len(rows) if rows.is_cuda else max(len(rows), ENOUGH)
    if not len(rows) or many > FEW * tokens:
        return None
    return torch.cat([rows, rows[-1:].expand(many - len(rows))])
