"""Generation without a cache: each token runs its whole row again. Slow, and right for every decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from weitiao.core.batch import pack
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.generation.forward import RowTokens


@dataclass
class UncachedForward:
    """The CachedForward of a model whose cache cannot be used: it keeps token ids."""

    model: TrainableModel
    keeps_prefixes = False
    ids: dict[int, list[int]] = field(default_factory=dict)

    def run(self, rows: Sequence[RowTokens]) -> Tensor:
        for row in rows:
            self.ids[row.slot] = [*self.ids.get(row.slot, [])[: row.past], *row.ids]
        wanting = [row for row in rows if row.wants_logits]
        if not wanting:
            return self.model.lm_head.weight().new_empty(0, 1)
        has_adapters = self.model.attachment.select_adapter is not None
        ids = [self.ids[row.slot] for row in wanting]
        batch = pack([{"input_ids": x, "labels": x} for x in ids], adapters=[x.adapter for x in wanting])
        batch = batch.to(self.model.device)
        with self.model.attachment.adapters_by_row(batch.adapters if has_adapters else (), batch.lengths):
            hidden = self.model.backbone(batch)  # virtual tokens are in the rows already
        last = {row: stop - 1 for row, stop in zip(batch.row_ids, batch.bounds[1:])}
        return self.model.lm_head.logits(hidden[[last[i] for i in range(len(wanting))]])

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError("no prefixes are kept")

    def fits(self, num_slots: int, length: int) -> bool:
        return True

    def release(self, slot: int) -> None:
        pass

    def clear(self) -> None:
        self.ids.clear()
