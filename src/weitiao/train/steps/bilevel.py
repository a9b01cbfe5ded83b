"""Two levels: most weights learn from one part of the rows, a few (the upper level's) from the other part.

Liu et al. 2019, "DARTS: Differentiable Architecture Search", arXiv 1806.09055, eq. 6 to 8, with v the lower level's
weights, l the upper level's, x the length of the step that is looked through:

    lower rows ---> gradient of v        L_low(v, l) + penalty
    upper rows ---> gradient of l        L_up(v, l)                       x = 0: first order, one point for both levels
                                         L_up(v - x dL_low/dv, l)         x > 0: second order, through that step

    d/dl = dL_up/dl (v', l) - x (dL_low/dl (v + e u) - dL_low/dl (v - e u)) / 2e       u = dL_up/dv',  e = 0.01 / |u|

v' is a plain gradient step, whatever the optimizer will do. Which rows are whose follows from their numbers alone. Each
level's mean is over its own rows, of the whole window and of all machines; the loss that is told, and that the guard
judges, is over all of them (the upper rows' at v' where x > 0). A level without rows in a window has no gradient there,
not a gradient of nought: no optimizer moves or decays it in that step, and its penalty waits.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weitiao.core.batch import Batch, select_segments
from weitiao.core.errors import RecipeError
from weitiao.core.method import UpperLevel
from weitiao.core.objective import LossFunction
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed
from weitiao.train.step import StepResult, backward, count_targets

REACH = 0.01  # how far v is moved to and fro for the difference (DARTS, sec. 2.3)


@dataclass
class Level:
    """Rows, and the weights that learn from them."""

    rows: list[Batch]
    weights: list[nn.Parameter]
    counts: dict[str, float]
    """By task, over all machines."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the loss, on this machine."""
    notes: dict[str, float] = field(default_factory=dict)
    """Of what the objective notes."""

    def __bool__(self) -> bool:
        """Whether there are rows to learn from, on any machine."""
        return any(self.counts.values())


def compute_gradients(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave each level's gradient, times `scale`, in its weights.

    Raises:
        RecipeError: the objective needs each batch as a whole.
    """
    upper_level = model.attachment.upper
    assert upper_level is not None, "a method that asks for two levels says which weights are the upper one's"
    if objective.traits.batch_coupled:
        raise RecipeError(
            "method: it splits each batch's rows, but this objective needs all rows of a batch together; use lora."
        )
    lower, upper = levels(model, objective, window, distributed, upper_level)
    if lower:
        lower.sums, lower.notes = backward(model, objective, lower.rows, lower.counts, scale, lower.weights)
        _penalize(model, lower, scale / distributed.world_size)
        distributed.all_reduce_gradients(lower.weights)
    if upper:
        _climb(model, objective, lower, upper, distributed, upper_level.unroll if lower else 0.0, scale)
        _penalize(model, upper, scale / distributed.world_size)
        distributed.all_reduce_gradients(upper.weights)
    sums = [distributed.all_reduce(level.sums) for level in (lower, upper)]
    noted = [distributed.all_reduce(level.notes) for level in (lower, upper)]
    counts = {task: lower.counts.get(task, 0.0) + upper.counts.get(task, 0.0) for task in lower.counts | upper.counts}
    every = sum(sum(one.get(task, 0.0) for one in sums) / many for task, many in counts.items() if many)
    tokens = distributed.all_reduce({"tokens": float(sum(batch.tokens for batch in window))})["tokens"]
    whole = sum(counts.values())
    notes = {name: sum(one.get(name, 0.0) for one in noted) / whole for name in noted[0] | noted[1] if whole}
    for name, level, one in (("lower_loss", lower, sums[0]), ("upper_loss", upper, sums[1])):
        if level:
            notes = {**notes, name: sum(one[task] / many for task, many in level.counts.items() if many)}
    return StepResult(every if whole else math.nan, int(tokens), int(whole), notes)


def levels(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, upper: UpperLevel
) -> tuple[Level, Level]:
    """The lower and the upper level's rows of a window, and what each is divided by."""
    weights = {name: p for name, p in model.trainable().items() if p.requires_grad}
    made = []
    for wanted in (False, True):
        chosen = [(batch, [i for i, row in enumerate(batch.row_ids) if upper.holds(row) == wanted]) for batch in window]
        rows = [select_segments(batch, some) for batch, some in chosen if some]
        mine = [p for name, p in weights.items() if (name in upper.names) == wanted]
        made.append(Level(rows, mine, distributed.all_reduce(count_targets(objective, rows))))
    return made[0], made[1]


def _penalize(model: TrainableModel, level: Level, scale: float) -> None:
    """The method's own penalty, as far as it concerns this level's weights."""
    if model.attachment.penalty is not None:
        (model.attachment.penalty() * scale).backward(inputs=level.weights)


def _climb(
    model: TrainableModel,
    objective: LossFunction,
    lower: Level,
    upper: Level,
    distributed: Distributed,
    unroll: float,
    scale: float,
) -> None:
    """The upper level's gradient on this machine."""
    steered = lower.weights if unroll else []
    with moved(lower.weights, [x.grad for x in lower.weights], -unroll / scale), _put_by(lower.weights):
        upper.sums, upper.notes = backward(model, objective, upper.rows, upper.counts, scale, [*upper.weights, *steered])
        distributed.all_reduce_gradients(steered)
        way = [None if x.grad is None else x.grad / scale for x in lower.weights]
    if unroll:
        _look_through(model, objective, lower, upper, way, unroll * scale)


def _look_through(
    model: TrainableModel, objective: LossFunction, lower: Level, upper: Level, way: list[Tensor | None], length: float
) -> None:
    """Add what the upper weights do by steering the lower level's step: a mixed second derivative, as a difference."""
    far = float(nn.utils.get_total_norm([u for u in way if u is not None]))
    if far == 0.0:
        return
    reach, device = REACH / far, lower.weights[0].device
    for sign in (1.0, -1.0):  # the same random numbers (dropout) on both sides, or the difference would be noise
        with torch.random.fork_rng([device] if device.type == "cuda" else []), moved(lower.weights, way, sign * reach):
            backward(model, objective, lower.rows, lower.counts, -sign * length / (2 * reach), upper.weights)


@contextmanager
def moved(weights: list[nn.Parameter], way: list[Tensor | None], far: float) -> Iterator[None]:
    """Inside, the weights lie `far` along the way; afterwards where they lay, to the bit."""
    there = [(weight, u, weight.detach().clone()) for weight, u in zip(weights, way) if far and u is not None]
    with torch.no_grad():
        for weight, u, _ in there:
            weight.add_(u, alpha=far)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, _, was in there:
                weight.copy_(was)


@contextmanager
def _put_by(weights: list[nn.Parameter]) -> Iterator[None]:
    """Inside, the weights have no gradients; afterwards those they had."""
    kept = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, grad in zip(weights, kept):
            weight.grad = grad
