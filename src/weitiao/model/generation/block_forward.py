"""A model generates through its hand-written block: packed new tokens of all rows, one forward pass, cached attention."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor, nn

from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.module_structure import layer_stack
from weitiao.model.backbone.block_backbone import BlockBackbone
from weitiao.model.generation.forward import RowTokens
from weitiao.model.layers.attention_cached import CachedBatch, KVCache, NewTokens, cached_batch

MAX_MEMORY = 0.25  # of the memory that is available when the engine is made, for keys and values


@dataclass
class BlockForward:
    """The CachedForward of a model whose backbone is a block."""

    model: TrainableModel
    keeps_prefixes = True
    cache: KVCache = field(default_factory=lambda: KVCache(int(psutil.virtual_memory().available * MAX_MEMORY)))

    def run(self, rows: Sequence[RowTokens]) -> Tensor:
        # rows of one token first, by length, so that those of similar length share a product
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids) > 1, rows[i].past, rows[i].slot))
        ordered = [rows[i] for i in order]
        new = [NewTokens(x.slot, x.past, len(x.ids)) for x in ordered]
        batch = cached_batch(self.cache, new, [x.ids for x in ordered], self.model.device)
        has_adapters = self.model.attachment.select_adapter is not None
        names = [x.adapter for x in ordered] if has_adapters else ()
        last = [stop - 1 for stop, x in zip(batch.bounds[1:], ordered) if x.wants_logits]
        with self.model.attachment.adapters_by_row(names, batch.lengths if names else None):
            hidden = self._hidden(batch, last)
        wanting = [i for i in order if rows[i].wants_logits]
        back = [wanting.index(i) for i in range(len(rows)) if rows[i].wants_logits]
        logits = self.model.lm_head.logits(hidden)
        return logits if back == list(range(len(back))) else logits[back]

    def _hidden(self, batch: CachedBatch, last: Sequence[int]) -> Tensor:
        """[N, D]: the final hidden states at the positions `last`."""
        backbone = self.model.backbone
        assert isinstance(backbone, BlockBackbone)
        block, stack = backbone.block, layer_stack(backbone.model)
        x, context = block.embed(stack, batch, _stored_dtype(block.layers(stack)[0], backbone.dtype))
        for batch.layer.value, layer in enumerate(block.layers(stack)):
            x = block.run_layer(layer, x, context, None)
        return block.finish(stack, x[torch.tensor(last, device=x.device, dtype=torch.long)])

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.cache.reserve(1 + max(source, target), length)
        self.cache.copy(source, target, length)

    def fits(self, num_slots: int, length: int) -> bool:
        return self.cache.fits(max(num_slots, self.cache.num_slots), max(length, self.cache.length))

    def release(self, slot: int) -> None:
        pass

    def clear(self) -> None:
        self.cache.clear()


def _stored_dtype(layer: nn.Module, default: torch.dtype) -> torch.dtype:
    """What a layer's own weights are stored in; what a method adds to them may have another dtype."""
    weights = [x for x in layer.parameters() if x.is_floating_point()]
    frozen = [x for x in weights if not x.requires_grad]
    return next((x.dtype for x in (*frozen, *weights)), default)
