"""A decoder without a hand-written block generates by transformers' own forward pass, on a padded batch with a cache.

    slot 4   . . k k k k | t       rows end together, so that each step appends one token to all
    slot 1   k k k k k k | t       . : padding, which the mask hides
    slot 6   . . . . k k | t

Prompts run apart, in a batch of their own, padded too. When rows join or leave, the batch is put together again; while they
stay the same, nothing is copied but what transformers' cache itself copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from weitiao.core.trainable_model import TrainableModel, evaluating, reference_logits
from weitiao.model.generation.forward import RowTokens

GONE = -1  # stands for the slot of a row that has ended
Layers = list[tuple[Tensor, Tensor]]
"""Of each layer, keys and values [1, H_kv, t, d]."""


@dataclass
class _Batch:
    """Rows in one cache, padded on the left."""

    slots: tuple[int, ...]
    lengths: list[int]
    cache: DynamicCache

    @property
    def width(self) -> int:
        return max(self.lengths, default=0)

    def row(self, number: int) -> Layers:
        """The keys and values of a row, without padding."""
        length = self.lengths[number]
        return [tuple(x[number : number + 1, :, -length:] for x in layer) for layer in _layers(self.cache)]  # pyright: ignore[reportReturnType]


@dataclass
class PaddedForward:
    """The CachedForward of any decoder whose cache is of keys and values."""

    model: TrainableModel
    keeps_prefixes = False
    rows: dict[int, Layers] = field(default_factory=dict)
    """Rows that are not in the batch."""
    batch: _Batch | None = None

    def run(self, rows: Sequence[RowTokens]) -> Tensor:
        together = [i for i, x in enumerate(rows) if x.past and len(x.ids) == 1]
        logits_of: dict[int, Tensor] = {}
        if together:
            self._join(rows, together)
            logits_of |= dict(zip(together, self._forward(self.batch, [rows[i] for i in together])))
        for count in sorted({len(x.ids) for i, x in enumerate(rows) if i not in logits_of}):
            group = [i for i, x in enumerate(rows) if i not in logits_of and len(x.ids) == count]
            for i in group if any(rows[i].past for i in group) else ():
                logits_of |= self._run_apart(rows, [i])
            if rest := [i for i in group if i not in logits_of]:
                logits_of |= self._run_apart(rows, rest)
        wanted = [logits_of[i] for i, x in enumerate(rows) if x.wants_logits]
        return torch.stack(wanted) if wanted else torch.empty(0, 1)

    def _run_apart(self, rows: Sequence[RowTokens], group: Sequence[int]) -> dict[int, Tensor]:
        """Prompts, or parts of one, of equal length and with equally many cached tokens."""
        past = [self._take(rows[i].slot, rows[i].past) if rows[i].past else [] for i in group]
        batch = _merged([rows[i].slot for i in group], past, [rows[i].past for i in group])
        logits = self._forward(batch, [rows[i] for i in group])
        for number, i in enumerate(group):
            self.rows[rows[i].slot] = batch.row(number)
        return dict(zip(group, logits))

    def _join(self, rows: Sequence[RowTokens], together: Sequence[int]) -> None:
        """Make `batch` hold these rows."""
        slots = tuple(rows[i].slot for i in together)
        if self.batch is not None and self.batch.slots == slots:
            return
        layers = [self._take(rows[i].slot, rows[i].past) for i in together]
        left = [x for x in (self.batch.slots if self.batch else ()) if x not in (*slots, GONE)]
        self.rows |= {slot: self._take(slot, None) for slot in left}
        self.batch = _merged(slots, layers, [rows[i].past for i in together])

    def _take(self, slot: int, length: int | None) -> Layers:
        """The keys and values of a slot's first tokens, wherever they are."""
        if self.batch is not None and slot in self.batch.slots:
            layers = self.batch.row(self.batch.slots.index(slot))
        else:
            layers = self.rows.pop(slot)
        return [(k[:, :, :length], v[:, :, :length]) for k, v in layers]

    def _forward(self, batch: _Batch | None, rows: Sequence[RowTokens]) -> Tensor:
        """[R, V] fp32: the logits after each row's last token; the batch's cache and lengths grow."""
        assert batch is not None
        device, width, count = self.model.device, batch.width, len(rows[0].ids)
        padding = torch.tensor([width - x for x in batch.lengths], device=device)[:, None]
        mask = (torch.arange(width + count, device=device) >= padding).long()
        positions = torch.tensor([[x.past + i for i in range(count)] for x in rows], device=device)
        has_adapters = self.model.attachment.select_adapter is not None
        transformers_model: Any = self.model.model
        with self.model.attachment.adapters_by_row([x.adapter for x in rows] if has_adapters else ()):
            out = transformers_model(
                input_ids=torch.tensor([list(x.ids) for x in rows], device=device),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=batch.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        batch.lengths = [x + count for x in batch.lengths]
        return out.logits[:, -1].float()

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError("no prefixes are kept")

    def fits(self, num_slots: int, length: int) -> bool:
        return True

    def release(self, slot: int) -> None:
        self.rows.pop(slot, None)
        if self.batch is not None:
            self.batch.slots = tuple(GONE if x == slot else x for x in self.batch.slots)

    def clear(self) -> None:
        self.rows.clear()
        self.batch = None


def _layers(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    layers: list[Any] = cache.layers
    return [(x.keys, x.values) for x in layers]


def _merged(slots: Sequence[int], rows: Sequence[Layers], lengths: Sequence[int]) -> _Batch:
    """Rows as one batch, padded on the left with zeros."""
    cache, width = DynamicCache(), max(lengths, default=0)
    for number in range(len(rows[0]) if rows else 0):
        keys, values = (
            torch.cat(
                [
                    torch.nn.functional.pad(row[number][which], (0, 0, width - length, 0))
                    for row, length in zip(rows, lengths)
                ]
            )
            for which in (0, 1)
        )
        cache.update(keys, values, number)
    return _Batch(tuple(slots), list(lengths), cache)


@torch.no_grad()
def padding_error(model: TrainableModel) -> float:
    """How much two rows of unequal length, in a padded batch with a cache, differ from each alone; of the largest logit.

    inf: it does not run.
    """
    rows, forward = ([5, 9, 30, 7, 11, 12], [6, 8, 13]), PaddedForward(model)
    virtual = list(model.attachment.virtual_tokens())
    expected = [reference_logits(model, row)[-1] for row in rows]
    with evaluating(model):
        try:
            ids = [[*virtual, *row] for row in rows]
            forward.run([RowTokens(slot, 0, row[:-1]) for slot, row in enumerate(ids)])
            logits = forward.run([RowTokens(slot, len(row) - 1, row[-1:]) for slot, row in enumerate(ids)])
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError):  # other kinds of caches
            return float("inf")
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(logits, expected))
