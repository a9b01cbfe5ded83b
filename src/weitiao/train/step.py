"""What the parts of steps/ share: counting targets, dividing by the counts, the backward pass, and the result of a step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from weitiao.core import events
from weitiao.core.batch import Batch
from weitiao.core.objective import LossFunction
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed


@dataclass(frozen=True)
class StepResult:
    """A window's loss and counts, over all processes; its gradients are in the parameters."""

    loss: float
    tokens: int
    supervised_tokens: int
    notes: dict[str, float] = field(default_factory=dict)
    tasks: str = ""
    """The tasks it has rows of, joined by " + "."""

    def event(self, step: int, data_step: int, norm: float, learning_rate: float, seconds: float) -> events.Step:
        """The event to log once the optimizer step is taken."""
        counts = (self.tokens, self.supervised_tokens, seconds)
        return events.Step(step, data_step, self.loss, norm, learning_rate, *counts, self.notes)


class Step(Protocol):
    """One file in train/steps/: how the gradients of a window of micro-batches are computed."""

    def compute_gradients(
        self, model: TrainableModel, objective: Any, window: list[Batch], distributed: Distributed, scale: float = 1.0
    ) -> StepResult: ...


class HasCounts(Protocol):
    """An objective that can count its targets."""

    def counts(self, batch: Batch) -> dict[str, float]: ...


def count_targets(objective: HasCounts, window: Iterable[Batch]) -> dict[str, float]:
    """By task, what the loss of this process's rows will be divided by; without a forward pass."""
    counts: dict[str, float] = {}
    for batch in window:
        for task, count in objective.counts(batch).items():
            counts[task] = counts.get(task, 0.0) + count
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
        counts: by task, over all micro-batches of all processes.
        weights: the weights that get a gradient; None: all.

    Returns:
        This process's sums of the losses by task, and of the objective's notes by name.
    """
    sums: dict[str, float] = {}
    notes: dict[str, float] = {}
    for batch in window:
        loss = objective.loss(model, batch)
        means = [total / counts[task] for task, total in loss.totals.items() if counts[task]]
        if means:
            mean = sum(means[1:], means[0])
            (mean * scale if scale != 1.0 else mean).backward(inputs=weights)
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
    own: tuple[dict[str, float], dict[str, float]],
    scale: float,
) -> StepResult:
    """Finish a window: add the gradient of the method's penalty, sum over all processes, and make the result.

    Args:
        own: what `backward` returned: this process's sums by task, and of the objective's notes.
    """
    if model.attachment.penalty is not None:
        (model.attachment.penalty() * (scale / distributed.world_size)).backward()
    distributed.all_reduce_gradients(model.trainable().values())
    sums, notes = (distributed.all_reduce(x) for x in own)
    tokens = distributed.all_reduce({"tokens": float(sum(batch.tokens for batch in window))})["tokens"]
    total = sum(counts.values())
    loss = sum(sums[task] / counts[task] for task in sums if counts[task]) if total else math.nan
    means = {f"{task} loss": notes.pop(task) / counts[task] for task in counts if task in notes and counts[task]}
    means |= {name: note / total for name, note in notes.items() if total}
    tasks = " + ".join(sorted(task for task, count in counts.items() if count))
    return StepResult(loss, int(tokens), int(total), means, tasks)
