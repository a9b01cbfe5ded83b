"""The forward pass through a hand-written block: all layers, or from a layer on; the last layer only where it is needed.

    embed -- layer 0 -- ... -- layer k-1 --|-- layer k -- ... -- layer L-1 -- finish
             frozen: run once and cached   |   the rest          keys and values of every token; all else
             (activation_cache.py)         |                     only at the positions that are scored

A block (one file in blocks/) defines how a family embeds, runs a layer and finishes. It calls the model's own modules, so
whatever a method put in their place is used.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.batch import FROZEN_STATES, Batch
from weitiao.core.lm_head import MIN_BLOCKED_ROWS
from weitiao.core.shared_prefix import PrefixSharedBatch, index_select_fp32_grad, share_prefixes
from weitiao.model.adapters.module_structure import architecture_of, layer_stack
from weitiao.model.layers.gradient_checkpointing import run_checkpointed
from weitiao.model.layers.saved_tensors import computing_in

MAX_FRACTION = 0.7  # of all tokens: if more rows are requested, leaving out the others saves nothing


class Block(Protocol):
    """One file in model/backbone/blocks/: a family's embeddings, its layers, and what follows them.

    `stack` is the module with the layers (module_structure.layer_stack); `context` is whatever `embed` passes on to layers.
    """

    FAMILIES: tuple[str, ...]
    """transformers' model types."""

    def embed(self, stack: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """The embeddings [T, D], and the context."""
        ...

    def layers(self, stack: Any) -> Sequence[nn.Module]:
        """The layers, lowest first."""
        ...

    def run_layer(self, layer: Any, x: Tensor, context: Any, rows: Tensor | None) -> Tensor:
        """One layer, [T, D] -> [T, D]; or [N, D] at `rows`."""
        ...

    def finish(self, stack: Any, x: Tensor) -> Tensor:
        """What follows the last layer, [N, D] -> [N, D]."""
        ...

    def final_modules(self, stack: Any) -> Sequence[nn.Module]:
        """The modules that `finish` uses."""
        ...


@dataclass
class BlockBackbone:
    """A Backbone that runs a block."""

    block: Block
    model: PreTrainedModel
    dtype: torch.dtype
    """Of the residual stream."""
    num_cached_layers: int = 0
    """How many of the lowest layers are skipped for batches that bring their output (FROZEN_STATES)."""
    num_tokens: int = 0
    """Tokens of all batches that were trained on."""
    num_shared_tokens: int = 0
    """How many of these did not run, since another row starts with them too."""

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        batch = self.share_prefixes(batch)
        if self.model.training:
            self.num_tokens += batch.tokens
            self.num_shared_tokens += batch.tokens - len(batch.input_ids)
        if not isinstance(batch, PrefixSharedBatch):
            return self._run(batch, rows)
        if rows is None:
            return batch.expand(self._run(batch, None))
        unique_rows, index = batch.token_index[rows].unique(return_inverse=True)
        return index_select_fp32_grad(self._run(batch, unique_rows), index)

    def share_prefixes(self, batch: Batch) -> Batch:
        """The batch as it runs: shared prefixes once, where that changes nothing.

        Not on a GPU: comparing rows would make it wait for the host.
        """
        has_noise = self.model.training and self._has_dropout
        if has_noise or batch.input_ids.is_cuda or not self._is_causal:
            return batch
        return share_prefixes(batch)

    @cached_property
    def _is_causal(self) -> bool:
        return architecture_of(self.model.config).kind != "encoder"

    @cached_property
    def _has_dropout(self) -> bool:
        config = self.model.config.get_text_config().to_dict()
        in_config = any(x > 0 for key, x in config.items() if "drop" in key and isinstance(x, float))
        return in_config or any(x.p > 0 for x in self.model.modules() if isinstance(x, nn.Dropout))

    def _run(self, batch: Batch, rows: Tensor | None) -> Tensor:
        block, stack = self.block, layer_stack(self.model)
        with computing_in(self.model, self.dtype):
            x, context = block.embed(stack, batch, self.dtype)
            layers, frozen_states = list(block.layers(stack)), batch.more.get(FROZEN_STATES)
            if frozen_states is not None:
                x = batch.compact(frozen_states) if isinstance(batch, PrefixSharedBatch) else frozen_states
                layers = layers[self.num_cached_layers :]
            last_rows = None if rows is None else _rows_of_last_layer(rows, len(x))
            for layer in layers[:-1]:
                x = run_checkpointed(layer, block.run_layer, x, context, None)
            x = run_checkpointed(layers[-1], block.run_layer, x, context, last_rows)
            if rows is not None:
                x = x[rows] if last_rows is None else x[: len(rows)]
            return block.finish(stack, x)

    @torch.no_grad()
    def run_frozen(self, batch: Batch) -> Tensor:
        """[T, D]: the output of the lowest `num_cached_layers` layers."""
        stack, batch = layer_stack(self.model), self.share_prefixes(batch)
        with computing_in(self.model, self.dtype):
            x, context = self.block.embed(stack, batch, self.dtype)
            for layer in list(self.block.layers(stack))[: self.num_cached_layers]:
                x = self.block.run_layer(layer, x, context, None)
        return batch.expand(x) if isinstance(batch, PrefixSharedBatch) else x

    def num_frozen_layers(self, trained: Collection[nn.Parameter]) -> int:
        """How many of the lowest layers have nothing trained in them or below them; at most all but one."""
        stack, trained_ids = layer_stack(self.model), {id(p) for p in trained}
        layers = list(self.block.layers(stack))
        in_layers_or_above = {id(p) for x in (*layers, *self.block.final_modules(stack)) for p in x.parameters()}
        if any(id(p) in trained_ids for p in stack.parameters() if id(p) not in in_layers_or_above):
            return 0  # the embeddings are trained
        is_trained = [any(id(p) in trained_ids for p in layer.parameters()) for layer in layers]
        return min(is_trained.index(True) if True in is_trained else len(layers), len(layers) - 1)


def _rows_of_last_layer(rows: Tensor, num_tokens: int) -> Tensor | None:
    """The rows that the last layer runs; None: all tokens.

    On a CPU, the last row is repeated up to MIN_BLOCKED_ROWS, so that matrix products sum in the same order as for many
    rows. On a GPU attention takes no row twice.
    """
    num_rows = len(rows) if rows.is_cuda else max(len(rows), MIN_BLOCKED_ROWS)
    if not len(rows) or num_rows > MAX_FRACTION * num_tokens:
        return None
    return torch.cat([rows, rows[-1:].expand(num_rows - len(rows))])
