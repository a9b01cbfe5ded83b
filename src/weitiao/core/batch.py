"""Batch: rows end to end, ready for the device. Loss: sums, never means.

Shape letters used in this package:
  B rows (segments)   T tokens   N supervised tokens   V vocabulary   D model width   L layers   H heads   R rank
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from weitiao.core.example import Audio
from weitiao.core.messages import Message

IGNORE = -100  # the label of a position that carries no loss (PyTorch's own default)
AUDIO_PLACEHOLDER = -1  # the id of a position that stands for an encoder's hidden state of audio: no token
FROZEN_STATES = "frozen_states"  # in Batch.more: the output of the frozen layers below the first trained one [T, D]
INPUT_FEATURES = "input_features"  # in Batch.more: audio features [B, mels, 2 S]; each row begins with S AUDIO_PLACEHOLDER


class Row(TypedDict):
    """One encoded row.

    `labels[t]` is the id that position t must predict, and means nothing else. For a causal model that is the *next*
    token (the shift is made once, here, so that no batch ever shifts across two rows); for a tagger it is the tag of
    token t. Everything else that an objective trains on is a named target of the row (AnnotatedRow).
    """

    input_ids: Sequence[int]
    labels: Sequence[int]


class AnnotatedRow(Row, total=False):
    """A row with more than token ids and labels. Targets are whole numbers, or numpy arrays of floats."""

    targets: dict[str, Any]
    """Targets of the whole row, each a number or [K]: a class id, regression values, where the context is."""
    token_targets: dict[str, Any]
    """Targets of its tokens, each [T]: word ids, which of the row's texts a token belongs to."""
    notes: tuple[Message, ...]
    """What was changed, to be counted and reported: "answers widened to whole tokens"."""
    task: str
    """Its task, of several."""
    audio: Audio
    """The audio file that its AUDIO_PLACEHOLDER positions stand for."""
    input_features: Callable[[], Tensor]
    """Computes the features [mels, 2 S] of that audio, when the row is packed into a batch."""


def task_of(row: Row) -> str:
    """A row's task; "" where there is one."""
    return row.get("task", "")


def take_tokens(row: Row, positions: Sequence[int]) -> AnnotatedRow:
    """Some of a row's tokens, with their labels and token targets; the row's own targets and task stay."""
    selected = AnnotatedRow(**{**row, **{key: [int(row[key][i]) for i in positions] for key in ("input_ids", "labels")}})
    if "token_targets" in selected:
        selected["token_targets"] = {name: [x[i] for i in positions] for name, x in selected["token_targets"].items()}
    return selected


@dataclass(frozen=True)
class Batch:
    """Rows end to end, without padding. Segments never see each other.

    input_ids     a a a a b b c c c
    position_ids  0 1 2 3 0 1 0 1 2
    bounds        0       4   6     9

    Where rows belong to several tasks, a target's name is "<task>/<name>", and rows of other tasks have zeros there.
    """

    input_ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    labels: Tensor  # [T]  the id that a position must predict; IGNORE where it carries no loss
    bounds: tuple[int, ...]  # [B + 1] where each segment starts, and the end
    row_ids: tuple[int, ...] = ()  # [B] which row of the data each segment is
    adapters: tuple[str, ...] = ()  # [B] each segment's adapter, "" for none; (): there is one model
    tasks: tuple[str, ...] = ()  # [B] each segment's task; (): there is one
    rng_key: tuple[int, ...] = ()  # the loader's (seed, step), which randomness follows from; () during evaluation
    targets: dict[str, Tensor] = field(default_factory=dict)  # [B] or [B, K]
    token_targets: dict[str, Tensor] = field(default_factory=dict)  # [T]
    more: dict[str, Tensor] = field(default_factory=dict)  # [T] or [B] first: what one kind of model alone needs

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
        """The rows that were packed, in the order of the batch."""
        ids, labels = self.input_ids.tolist(), self.labels.tolist()
        targets = {name: x.cpu().numpy() for name, x in self.targets.items()}
        token_targets = {name: x.cpu().numpy() for name, x in self.token_targets.items()}
        rows: list[Row] = []
        for i, (a, b) in enumerate(zip(self.bounds, self.bounds[1:])):
            task = self.tasks[i] if self.tasks else ""
            row = AnnotatedRow(input_ids=ids[a:b], labels=labels[a:b])
            if targets:
                row["targets"] = {name: x[i] for name, x in _of_task(targets, task).items()}
            if token_targets:
                row["token_targets"] = {name: x[a:b] for name, x in _of_task(token_targets, task).items()}
            if INPUT_FEATURES in self.more:
                row["input_features"] = lambda x=self.more[INPUT_FEATURES][i]: x.cpu()
            if task:
                row["task"] = task
            rows.append(row)
        return rows

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """Neighbouring segments of equal length: (where the first starts, how many, their length)."""
        groups: list[tuple[int, int, int]] = []
        for start, length in zip(self.bounds, self.lengths):
            if groups and groups[-1][2] == length:
                groups[-1] = (groups[-1][0], groups[-1][1] + 1, length)
            else:
                groups.append((start, 1, length))
        return groups

    def to(self, device: torch.device | str) -> "Batch":
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        def move_all(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: move(x) for name, x in tensors.items()}

        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            labels=move(self.labels),
            targets=move_all(self.targets),
            token_targets=move_all(self.token_targets),
            more=move_all(self.more),
        )


def pack(
    rows: Sequence[Row], row_ids: Sequence[int] = (), adapters: Sequence[str] = (), rng_key: tuple[int, ...] = ()
) -> Batch:
    """Pack rows end to end, longest first (equal lengths are then neighbours and share one attention call).

    Args:
        rows: at least one encoded row.
        row_ids: the number of each row in the data, for per-row losses; default: its place in `rows`.
        adapters: each row's adapter, where there are several.
        rng_key: the seed and the step that the batch is for.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    ordered = [rows[i] for i in order]
    lengths = [len(row["input_ids"]) for row in ordered]

    def join(key: str) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(row[key], np.int64) for row in ordered]))

    input_features = [compute() for row in ordered if (compute := row.get("input_features"))]  # all rows have them, or none
    return Batch(
        input_ids=join("input_ids"),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        labels=join("labels"),
        bounds=(0, *accumulate(lengths)),
        row_ids=tuple(row_ids[i] for i in order) if row_ids else tuple(order),
        adapters=tuple(adapters[i] for i in order) if adapters else (),
        tasks=tuple(task_of(row) for row in ordered) if "task" in ordered[0] else (),
        rng_key=rng_key,
        targets={name: torch.from_numpy(np.stack(x)) for name, x in _joined(ordered, "targets").items()},
        token_targets={name: torch.from_numpy(np.concatenate(x)) for name, x in _joined(ordered, "token_targets").items()},
        more={INPUT_FEATURES: torch.stack(input_features)} if input_features else {},
    )


def _joined(rows: Sequence[Row], key: str) -> dict[str, list[np.ndarray]]:
    """Each named target of all rows, those of a task under its name; zeros for rows that have none."""
    by_row: list[dict[str, np.ndarray]] = []
    for row in rows:
        prefix = f"{task_of(row)}/" if task_of(row) else ""
        by_row.append({prefix + name: _array(x) for name, x in row.get(key, {}).items()})
    examples = {name: x for targets in by_row for name, x in targets.items()}

    def absent(name: str, row: Row) -> np.ndarray:
        like = examples[name]
        return np.zeros(len(row["input_ids"]) if key == "token_targets" else like.shape, like.dtype)

    return {
        name: [targets[name] if name in targets else absent(name, row) for row, targets in zip(rows, by_row)]
        for name in examples
    }


def _array(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)


def _of_task(targets: dict[str, Any], task: str) -> dict[str, Any]:
    """A task's targets, by their own names."""
    if not task:
        return targets
    return {name.removeprefix(f"{task}/"): x for name, x in targets.items() if name.startswith(f"{task}/")}


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
        targets={name: x[which] for name, x in batch.targets.items()},
        token_targets={name: x[tokens] for name, x in batch.token_targets.items()},
        more={name: x[tokens if len(x) == batch.tokens else which] for name, x in batch.more.items()},
    )


def select_task(batch: Batch, task: str) -> tuple[Batch, list[int]]:
    """(a task's segments, as its own objective sees them: as if there were no other task; which segments they are)."""
    rows = [i for i, name in enumerate(batch.tasks) if name == task]
    selected = batch if len(rows) == len(batch.tasks) else select_segments(batch, rows)
    targets, token_targets = _of_task(selected.targets, task), _of_task(selected.token_targets, task)
    return replace(selected, tasks=(), targets=targets, token_targets=token_targets), rows


def with_virtual_tokens(batch: Batch, virtual_tokens: Sequence[int]) -> tuple[Batch, Tensor]:
    """The batch with these ids before every row. They carry no loss and have zeros as targets.

    Returns:
        The longer batch [T + B P], and the positions of the batch's own tokens in it [T].
    """
    num, device = len(virtual_tokens), batch.input_ids.device
    lengths = torch.tensor(batch.lengths, device=device)
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths, output_size=batch.tokens)  # [T]
    own = torch.arange(batch.tokens, device=device) + (row + 1) * num  # [T]
    total = batch.tokens + num * len(batch.lengths)
    offsets = torch.arange(num, device=device)
    starts = torch.tensor([b + i * num for i, b in enumerate(batch.bounds[:-1])], device=device)
    virtual = (starts[:, None] + offsets).flatten()  # [B P]

    def longer(x: Tensor, fill: int) -> Tensor:
        out = x.new_full((total, *x.shape[1:]), fill)
        out[own] = x
        return out

    ids, positions = longer(batch.input_ids, 0), longer(batch.position_ids + num, 0)
    ids[virtual] = torch.tensor(list(virtual_tokens), device=device).repeat(len(batch.lengths))
    positions[virtual] = offsets.repeat(len(batch.lengths))
    extended = replace(
        batch,
        input_ids=ids,
        position_ids=positions,
        labels=longer(batch.labels, IGNORE),
        bounds=tuple(b + i * num for i, b in enumerate(batch.bounds)),
        token_targets={name: longer(x, 0) for name, x in batch.token_targets.items()},
    )
    return extended, own


@dataclass(frozen=True)
class Loss:
    """Sums by task, with their gradient; the counts come from `LossFunction.counts`.

    The loop adds the counts of the whole accumulation window and of all processes first, then back-propagates
    total / count. So one batch of 8 rows, two of 4 and eight of 1 give the same gradient.
    """

    totals: dict[str, Tensor]  # task -> scalar
    notes: dict[str, float] = field(default_factory=dict)
    """Further sums, logged over the count; one that is named as a task is that task's plain loss."""
