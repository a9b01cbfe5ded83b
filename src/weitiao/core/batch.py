"""Batch: rows laid end to end, ready for the device. Loss: sums, never means.

Shape letters used in this package:
  B rows (segments)   T tokens   N supervised tokens   V vocabulary   D model width   L layers   H heads   R rank
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from weitiao.core.example import Audio

FROZEN_STATES = "below"  # in Batch.more: what the frozen layers below the first trained one gave [T, D]
AUDIO_PLACEHOLDER = -1  # the id of a place where the encoder hears and reads nothing: no token
IGNORE = -100  # the label of a position that is not learnt (PyTorch's own default)
SOUND = "sound"  # in Batch.more: what an encoder hears [B, mels, 2 S]; each row begins with S places HEARD


class Row(TypedDict):
    """One encoded row: what goes in, and what each position must say.

    `labels[t]` is what position t must predict. For a causal model that is the *next* token (the shift is made once,
    here, so that no batch ever shifts across two rows); for a tagger it is the tag of token t.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]


class AnnotatedRow(Row, total=False):
    """A row of which more is to be said."""

    notes: tuple[str, ...]
    """What was done to it, to be counted and told: "answers widened to whole tokens"."""
    task: str
    """Which of several tasks it belongs to."""
    sound: Audio
    """The file that its first places (HEARD) stand for."""
    input_features: Callable[[], Tensor]
    """Makes the features [mels, 2 S] of that sound, when the row is laid into a batch."""


def task_of(row: Row) -> str:
    """Which of several tasks a row belongs to; "" where there is one."""
    return row.get("task", "")


@dataclass(frozen=True)
class Batch:
    """Rows end to end, without padding. Segments never see each other.

    input_ids     a a a a b b c c c
    position_ids  0 1 2 3 0 1 0 1 2
    bounds        0       4   6     9
    """

    input_ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    labels: Tensor  # [T]  IGNORE where not learnt
    bounds: tuple[int, ...]  # [B + 1] where each segment starts, and the end
    row_ids: tuple[int, ...] = ()  # [B] which row of the data each segment is
    adapters: tuple[str, ...] = ()  # [B] which adapter each segment goes through, "" for none; (): there is one model
    tasks: tuple[str, ...] = ()  # [B] which task each segment belongs to; (): there is one
    rng_key: tuple[int, ...] = ()  # the loader's (seed, step), which chance follows from; () while measuring
    more: dict[str, Tensor] = field(default_factory=dict)  # [T] or [B] first: what one objective alone needs

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment, [B]."""
        return tuple(b - a for a, b in zip(self.bounds, self.bounds[1:]))

    @property
    def supervised(self) -> Tensor:
        """[N]: the positions whose label is trained on, ascending."""
        return (self.labels != IGNORE).nonzero()[:, 0]

    @property
    def tokens(self) -> int:
        return self.bounds[-1]

    @property
    def rows(self) -> list[Row]:
        """What was laid end to end, in this order."""
        ids, labels = self.input_ids.tolist(), self.labels.tolist()
        rows = [Row(input_ids=ids[a:b], labels=labels[a:b]) for a, b in zip(self.bounds, self.bounds[1:])]
        if SOUND in self.more:
            rows = [AnnotatedRow(**row, input_features=lambda x=x: x.cpu()) for row, x in zip(rows, self.more[SOUND])]
        return [AnnotatedRow(**row, task=task) for row, task in zip(rows, self.tasks)] if self.tasks else rows  # pyright: ignore

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """Neighbouring segments of equal length: (where the first starts, how many, their length)."""
        found: list[tuple[int, int, int]] = []
        for start, length in zip(self.bounds, self.lengths):
            if found and found[-1][2] == length:
                found[-1] = (found[-1][0], found[-1][1] + 1, length)
            else:
                found.append((start, 1, length))
        return found

    def to(self, device: torch.device | str) -> "Batch":
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        more = {name: move(x) for name, x in self.more.items()}
        moved = {"input_ids": move(self.input_ids), "position_ids": move(self.position_ids)}
        return replace(self, **moved, labels=move(self.labels), more=more)


def pack(
    rows: Sequence[Row], source: Sequence[int] = (), adapters: Sequence[str] = (), rng_key: tuple[int, ...] = ()
) -> Batch:
    """Lay rows end to end, longest first (equal lengths then stand together and share one attention call).

    Args:
        rows: at least one encoded row.
        source: the number of each row in the data, for complaints and for per-row losses.
        adapters: the name of each row's adapter, where there are several.
        draw: the seed and the step that they are made for.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    lengths = [len(rows[i]["input_ids"]) for i in order]
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)

    def join(key: str) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(rows[i][key], np.int64) for i in order]))

    input_features = [rows[i]["input_features"]() for i in order] if "input_features" in rows[0] else []  # pyright: ignore
    return Batch(
        input_ids=join("input_ids"),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        labels=join("labels"),
        bounds=tuple(bounds),
        row_ids=tuple(source[i] for i in order) if source else tuple(order),
        adapters=tuple(adapters[i] for i in order) if adapters else (),
        tasks=tuple(task_of(rows[i]) for i in order) if "task" in rows[0] else (),
        rng_key=rng_key,
        more={SOUND: torch.stack(input_features)} if input_features else {},
    )


def select_segments(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some of a batch's segments, in this order, as a batch of their own."""
    spans = [torch.arange(batch.bounds[i], batch.bounds[i + 1]) for i in rows]
    tokens, which = torch.cat(spans).to(batch.input_ids.device), torch.tensor(rows, device=batch.input_ids.device)
    return Batch(
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        labels=batch.labels[tokens],
        bounds=(0, *accumulate(len(span) for span in spans)),
        row_ids=tuple(batch.row_ids[i] for i in rows),
        tasks=tuple(batch.tasks[i] for i in rows) if batch.tasks else (),
        rng_key=batch.rng_key,
        more={name: x[tokens if len(x) == batch.tokens else which] for name, x in batch.more.items()},
    )


def with_virtual_tokens(batch: Batch, virtual_tokens: Sequence[int]) -> tuple[Batch, Tensor]:
    """The batch with these ids before every row.

    Returns:
        The longer batch [T + B P], and where in it the batch's own tokens stand [T].
    """
    many, device = len(virtual_tokens), batch.input_ids.device
    lengths = torch.tensor(batch.lengths, device=device)
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths, output_size=batch.tokens)  # [T]
    kept = torch.arange(batch.tokens, device=device) + (row + 1) * many
    total = batch.tokens + many * len(batch.lengths)
    first = torch.arange(many, device=device)
    at = torch.tensor([b + i * many for i, b in enumerate(batch.bounds[:-1])], device=device)
    places = (at[:, None] + first).flatten()
    ids = batch.input_ids.new_empty(total)
    ids[kept], ids[places] = batch.input_ids, torch.tensor(list(virtual_tokens), device=device).repeat(len(batch.lengths))
    positions = batch.position_ids.new_empty(total)
    positions[kept], positions[places] = batch.position_ids + many, first.repeat(len(batch.lengths))
    labels = batch.labels.new_full((total,), IGNORE)
    labels[kept] = batch.labels
    bounds = tuple(b + i * many for i, b in enumerate(batch.bounds))
    return replace(batch, input_ids=ids, position_ids=positions, labels=labels, bounds=bounds), kept


@dataclass(frozen=True)
class Loss:
    """Sums by task, with their gradient; the counts come from `Objective.counts`.

    The loop adds the counts of the whole accumulation window and of all machines first, then back-propagates
    total / count. So one batch of 8 rows, two of 4 and eight of 1 give the same gradient.
    """

    totals: dict[str, Tensor]  # task -> scalar
    notes: dict[str, float] = field(default_factory=dict)
    """Sums, too: the journal has them over the count; one named as a task is that task's plain loss."""
