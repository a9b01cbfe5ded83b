"""What ways of taking a step share: counting before, dividing, back-propagating, and what each gives back."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from weitiao.core.batch import Batch
from weitiao.core.objective import LossFunction
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed


@dataclass(frozen=True)
class StepResult:
    """A window's loss and counts, over all machines; its gradients lie in the parameters."""

    loss: float
    tokens: int
    supervised: int
    notes: dict[str, float] = field(default_factory=dict)
    tasks: str = ""
    """Which of several tasks it has rows of."""


class Step(Protocol):
    """One file in train/steps/: how the gradients of a window of micro-batches are computed."""

    def compute_gradients(
        self, model: TrainableModel, objective: Any, window: list[Batch], distributed: Distributed, scale: float = 1.0
    ) -> StepResult: ...


def count_targets(objective: LossFunction, window: Iterable[Batch]) -> dict[str, float]:
    """By task, what this machine's rows will be divided by; without a forward pass."""
    counts: dict[str, float] = {}
    for batch in window:
        for task, many in objective.counts(batch).items():
            counts[task] = counts.get(task, 0.0) + many
    return counts


def backward(
    model: TrainableModel,
    objective: LossFunction,
    window: Iterable[Batch],
    counts: dict[str, float],
    scale: float = 1.0,
    weights: Sequence[nn.Parameter] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Add the gradient of total / count, times `scale`, of each micro-batch.

    Args:
        counts: of all micro-batches on all machines.
        weights: whose gradients are wanted; None: all.

    Returns:
        This machine's sums by task, and of what the objective notes.
    """
    sums: dict[str, float] = {}
    notes: dict[str, float] = {}
    for batch in window:
        loss = objective.loss(model, batch)
        if any(counts[task] for task in loss.totals):
            mean = sum(total / counts[task] for task, total in loss.totals.items() if counts[task])
            (mean * scale if scale != 1.0 else mean).backward(inputs=weights)  # pyright: ignore
        for task, total in loss.totals.items():
            sums[task] = sums.get(task, 0.0) + float(total.detach())
        for name, note in loss.notes.items():
            notes[name] = notes.get(name, 0.0) + note
    return sums, notes


def reduce(
    model: TrainableModel,
    window: Sequence[Batch],
    distributed: Distributed,
    counts: dict[str, float],
    told: tuple[dict[str, float], dict[str, float]],
    scale: float,
) -> StepResult:
    """What follows on the gradients of a window: the method's penalty, the other machines, and what is told.

    Args:
        told: this machine's sums by task, and the objective's notes.
    """
    if model.attachment.penalty is not None:
        (model.attachment.penalty() * (scale / distributed.world_size)).backward()
    distributed.all_reduce_gradients(model.trainable().values())
    sums, notes = (distributed.all_reduce(x) for x in told)
    tokens = distributed.all_reduce({"tokens": float(sum(batch.tokens for batch in window))})["tokens"]
    whole = sum(counts.values())
    value = sum(sums[task] / counts[task] for task in sums if counts[task]) if whole else math.nan
    means = {f"{x} loss": notes.pop(x) / counts[x] for x in counts if x in notes and counts[x]}
    means |= {name: note / whole for name, note in notes.items() if whole}
    return StepResult(
        value, int(tokens), int(whole), means, " + ".join(sorted(task for task, many in counts.items() if many))
    )
