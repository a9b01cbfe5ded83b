"""Two levels: most weights train on one part of the rows, a few (the upper level's) on the other part.

Liu et al. 2019, "DARTS: Differentiable Architecture Search", arXiv 1806.09055, eq. 6 to 8, with v the weights of the lower
level, l those of the upper level, and x the size of the step that the upper gradient looks through (`unroll`):

    lower rows ---> gradient of v        L_low(v, l) + penalty
    upper rows ---> gradient of l        L_up(v, l)                       x = 0: first order, one point for both levels
                                         L_up(v - x dL_low/dv, l)         x > 0: second order, through that step

    d/dl = dL_up/dl (v', l) - x (dL_low/dl (v + e u) - dL_low/dl (v - e u)) / 2e       u = dL_up/dv',  e = 0.01 / |u|

v' is one plain gradient step, whatever the optimizer will do. The row numbers alone decide which level a row belongs to.
Each level's mean is over its own rows, of the whole window and all processes. The loss that is logged, and judged by the
guard, is over all rows (the upper rows' at v' where x > 0). A level without rows in a window gets no gradient, which is not
a gradient of zero: no optimizer moves or decays its weights in that step, and its penalty waits for the next.
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

EPSILON = 0.01  # |e u|: how far v is moved in both directions for the finite difference (DARTS, sec. 2.3)


@dataclass
class Level:
    """Rows, and the weights that train on them."""

    rows: list[Batch]
    weights: list[nn.Parameter]
    counts: dict[str, float]
    """By task, over all processes."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the loss, by task, in this process."""
    notes: dict[str, float] = field(default_factory=dict)
    """Of the objective's notes, by name, in this process."""

    def __bool__(self) -> bool:
        """Whether any process has rows of this level."""
        return any(self.counts.values())


def compute_gradients(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave each level's gradient, times `scale`, in its weights.

    Raises:
        RecipeError: the objective needs each batch as a whole.
    """
    upper_level = model.attachment.upper
    assert upper_level is not None, "a method with step 'bilevel' must set attachment.upper"
    if objective.traits.batch_coupled:
        raise RecipeError("method: it splits the rows of each batch, but this objective needs them together. Use lora.")
    lower, upper = split_levels(model, objective, window, distributed, upper_level)
    if lower:
        lower.sums, lower.notes = backward(model, objective, lower.rows, lower.counts, scale, lower.weights)
        _add_penalty(model, lower, scale / distributed.world_size)
        distributed.all_reduce_gradients(lower.weights)
    if upper:
        # with no lower rows in this window there is no lower step to look through
        _upper_gradient(model, objective, lower, upper, distributed, upper_level.unroll if lower else 0.0, scale)
        _add_penalty(model, upper, scale / distributed.world_size)
        distributed.all_reduce_gradients(upper.weights)
    tokens = distributed.all_reduce({"tokens": float(sum(batch.tokens for batch in window))})["tokens"]
    return _result(lower, upper, int(tokens), distributed)


def split_levels(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, upper: UpperLevel
) -> tuple[Level, Level]:
    """The lower and the upper level: the rows of each, its weights, and the counts that its loss is divided by."""
    weights = {name: p for name, p in model.trainable().items() if p.requires_grad}
    levels = []
    for is_upper in (False, True):
        selected = [(batch, [i for i, row in enumerate(batch.row_ids) if upper.holds(row) == is_upper]) for batch in window]
        rows = [select_segments(batch, segments) for batch, segments in selected if segments]
        own_weights = [p for name, p in weights.items() if (name in upper.names) == is_upper]
        levels.append(Level(rows, own_weights, distributed.all_reduce(count_targets(objective, rows))))
    return levels[0], levels[1]


def _add_penalty(model: TrainableModel, level: Level, scale: float) -> None:
    """Add the gradient of the method's own penalty to this level's weights."""
    if model.attachment.penalty is not None:
        (model.attachment.penalty() * scale).backward(inputs=level.weights)


def _upper_gradient(
    model: TrainableModel,
    objective: LossFunction,
    lower: Level,
    upper: Level,
    distributed: Distributed,
    unroll: float,
    scale: float,
) -> None:
    """Add the upper level's gradient on this process. The lower weights and their gradients are afterwards as before."""
    through = lower.weights if unroll else []  # with unroll, dL_up/dv' is needed too
    # the lower gradients are scaled already, so dividing by the scale makes the step v - unroll * dL_low/dv
    with moved(lower.weights, [x.grad for x in lower.weights], -unroll / scale), _stashed_gradients(lower.weights):
        upper.sums, upper.notes = backward(model, objective, upper.rows, upper.counts, scale, [*upper.weights, *through])
        distributed.all_reduce_gradients(through)
        direction = [None if x.grad is None else x.grad / scale for x in lower.weights]
    if unroll:
        _add_mixed_derivative(model, objective, lower, upper, direction, unroll * scale)


def _add_mixed_derivative(
    model: TrainableModel,
    objective: LossFunction,
    lower: Level,
    upper: Level,
    direction: list[Tensor | None],
    step_size: float,
) -> None:
    """Add the effect of l on L_up through the lower step: the second term of d/dl, as a central difference along u.

    The exact term is x times the mixed second derivative of L_low times u. Two more gradients of L_low, at v + e u and at
    v - e u, replace it.
    """
    norm = float(nn.utils.get_total_norm([u for u in direction if u is not None]))
    if norm == 0.0:
        return
    epsilon, device = EPSILON / norm, lower.weights[0].device
    for sign in (1.0, -1.0):
        # both sides draw the same random numbers (dropout), or the difference would be noise
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            moved(lower.weights, direction, sign * epsilon),
        ):
            backward(model, objective, lower.rows, lower.counts, -sign * step_size / (2 * epsilon), upper.weights)


def _result(lower: Level, upper: Level, tokens: int, distributed: Distributed) -> StepResult:
    """The loss over the rows of both levels, over all processes, with each level's own loss as a note."""
    sums = [distributed.all_reduce(level.sums) for level in (lower, upper)]
    level_notes = [distributed.all_reduce(level.notes) for level in (lower, upper)]
    counts = {task: lower.counts.get(task, 0.0) + upper.counts.get(task, 0.0) for task in lower.counts | upper.counts}
    loss = sum(sum(one.get(task, 0.0) for one in sums) / count for task, count in counts.items() if count)
    total = sum(counts.values())
    names = level_notes[0] | level_notes[1]
    notes = {name: sum(one.get(name, 0.0) for one in level_notes) / total for name in names if total}
    for name, level, level_sums in (("lower_loss", lower, sums[0]), ("upper_loss", upper, sums[1])):
        if level:
            notes[name] = sum(level_sums[task] / count for task, count in level.counts.items() if count)
    return StepResult(loss if total else math.nan, tokens, int(total), notes)


@contextmanager
def moved(weights: list[nn.Parameter], direction: list[Tensor | None], distance: float) -> Iterator[None]:
    """Inside, the weights are moved by `distance` along the direction; afterwards they are as before, bit-exactly."""
    originals = [(w, u, w.detach().clone()) for w, u in zip(weights, direction) if distance and u is not None]
    with torch.no_grad():
        for weight, u, _ in originals:
            weight.add_(u, alpha=distance)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, _, original in originals:
                weight.copy_(original)


@contextmanager
def _stashed_gradients(weights: list[nn.Parameter]) -> Iterator[None]:
    """Inside, the weights have no gradients; afterwards they have those from before."""
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
