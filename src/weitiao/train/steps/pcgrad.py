"""Several tasks whose gradients may point apart: what conflicts is taken out before they are added (PCGrad).

Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm 1:

    g_i = gradient of task i's mean loss, over the whole window and all machines
    for each i, for each j != i in a random order:   if g_i' . g_j < 0:   g_i' -= (g_i' . g_j) / |g_j|^2 g_j
    the step's gradient is the sum of all g_i'

The products are over all trained weights of the shared model together. The heads are left alone: each is one task's.
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
    """Leave the sum of the tasks' gradients, what conflicts taken out, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and what was counted, over all machines.
    """
    counts = distributed.all_reduce(count_targets(objective, window))
    weights = list(model.trainable().values())
    sums: dict[str, float] = {}
    notes: dict[str, float] = {}
    gradients: list[list[Tensor]] = []
    for task in counts:
        mine = [select_segments(x, rows) for x in window if (rows := [i for i, name in enumerate(x.tasks) if name == task])]
        for weight in weights:
            weight.grad = None
        found = backward(model, objective, mine, counts, scale)
        sums, notes = sums | found[0], notes | found[1]
        distributed.all_reduce_gradients(weights)
        gradients.append([torch.zeros_like(x) if x.grad is None else x.grad for x in weights])
    names = list(model.trainable())
    trunk = [i for i, name in enumerate(names) if not name.startswith(HEAD)]
    order = sum(distributed.all_gather([x.rng_key for x in window][:1] if distributed.is_main else []), ())
    for i in set(range(len(weights))) - set(trunk):
        weights[i].grad = torch.stack([g[i] for g in gradients]).sum(0)
    shared = _without_conflicts([[g[i] for i in trunk] for g in gradients], random.Random(repr(order)))
    for i, gradient in zip(trunk, shared):
        weights[i].grad = gradient
    for weight in weights:
        weight.grad = weight.grad / distributed.world_size  # pyright: ignore  # `finish` adds all machines' once more
    return reduce(model, window, distributed, counts, (sums, notes), scale)


def _without_conflicts(gradients: list[list[Tensor]], order: random.Random) -> list[Tensor]:
    """[K tasks][weights] -> [weights]"""
    if not gradients[0]:
        return []
    lengths = [_dot(g, g) for g in gradients]
    whole = [torch.zeros_like(x) for x in gradients[0]]
    for i, own in enumerate(gradients):
        mine = [x.clone() for x in own]
        others = [j for j in range(len(gradients)) if j != i and lengths[j] > 0]
        order.shuffle(others)
        for j in others:
            along = _dot(mine, gradients[j])
            if along < 0:
                for x, g in zip(mine, gradients[j]):
                    x.sub_(g, alpha=along / lengths[j])
        for x, g in zip(whole, mine):
            x.add_(g)
    return whole


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    """Over all weights, in double precision."""
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b)))
