"""PCGrad: for tasks whose gradients conflict; the conflicting components are removed before the gradients are added.

Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm 1:

    g_i = gradient of task i's mean loss, over the whole window and all processes
    for each i, for each j != i in a random order:   if g_i' . g_j < 0:   g_i' -= (g_i' . g_j) / |g_j|^2 g_j
    the step's gradient is the sum of all g_i'

The dot products are over all trained weights of the shared model together. Heads are left alone: each belongs to one task.
"""

import random

import torch
from torch import Tensor

from weitiao.core.batch import Batch, select_segments
from weitiao.core.objective import LossFunction
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.train.distributed import Distributed
from weitiao.train.step import StepResult, backward, count_targets, reduce


def compute_gradients(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave the sum of the tasks' gradients without conflicts, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and counts, over all processes.
    """
    counts = distributed.all_reduce(count_targets(objective, window))
    weights = list(model.trainable().values())
    sums: dict[str, float] = {}
    notes: dict[str, float] = {}
    gradients: list[list[Tensor]] = []  # [tasks][weights]
    for task in counts:
        batches = [
            select_segments(batch, rows)
            for batch in window
            if (rows := [i for i, name in enumerate(batch.tasks) if name == task])
        ]
        for weight in weights:
            weight.grad = None
        task_sums, task_notes = backward(model, objective, batches, counts, scale)
        sums, notes = sums | task_sums, notes | task_notes
        distributed.all_reduce_gradients(weights)
        gradients.append([torch.zeros_like(x) if x.grad is None else x.grad for x in weights])
    names = list(model.trainable())
    shared = [i for i, name in enumerate(names) if not name.startswith(HEAD)]
    # the same random order in all processes, and in a resumed run: it follows from the window's data alone
    rng_key = sum(distributed.all_gather([x.rng_key for x in window][:1] if distributed.is_main else []), ())
    heads = sorted(set(range(len(weights))) - set(shared))
    total = {i: torch.stack([g[i] for g in gradients]).sum(0) for i in heads}
    total |= zip(shared, _without_conflicts([[g[i] for i in shared] for g in gradients], random.Random(repr(rng_key))))
    for i, weight in enumerate(weights):
        weight.grad = total[i] / distributed.world_size  # `reduce` sums over all processes once more
    return reduce(model, window, distributed, counts, (sums, notes), scale)


def _without_conflicts(gradients: list[list[Tensor]], order: random.Random) -> list[Tensor]:
    """[tasks][weights] -> [weights]: the sum of the gradients, each without what conflicts with another task."""
    if not gradients[0]:
        return []
    squared_norms = [_dot(g, g) for g in gradients]
    total = [torch.zeros_like(x) for x in gradients[0]]
    for i, own in enumerate(gradients):
        projected = [x.clone() for x in own]
        others = [j for j in range(len(gradients)) if j != i and squared_norms[j] > 0]
        order.shuffle(others)
        for j in others:
            dot = _dot(projected, gradients[j])
            if dot < 0:  # they conflict: remove the component along the other task's gradient
                for x, g in zip(projected, gradients[j]):
                    x.sub_(g, alpha=dot / squared_norms[j])
        for x, g in zip(total, projected):
            x.add_(g)
    return total


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """The dot product over all weights, in double precision."""
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b)))
