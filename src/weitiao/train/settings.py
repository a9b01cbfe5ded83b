"""The resolved settings that the loop needs, and the optimizer that they describe."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import RecipeError
from weitiao.core.recipe_sections import Train
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.train.schedules import rate_at


@dataclass
class Plan:
    """What training needs to know, with every automatic value resolved to a number."""

    settings: Train
    steps: int
    learning_rate: float
    evaluate_every: int
    save_every: int
    step: str = "accumulate"
    """The part of train/steps/ that computes the gradients."""
    identity: dict[str, str] = field(default_factory=dict)
    """What a resumed run must have in common with this one."""
    seed: int = 0
    head_learning_rate: float | None = None
    """Peak learning rate of the objective's heads; None: the same as all other weights."""

    @property
    def is_guarded(self) -> bool:
        return self.settings.guard == "on"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return rate_at(step, self.steps, self.learning_rate, self.settings.warmup_ratio, self.settings.lr_schedule)


def _by_dimension(weights: Mapping[str, Tensor], names: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices with weight decay, vectors (biases, norms) without."""
    matrices = sorted(name for name in names if weights[name].ndim >= 2)
    vectors = sorted(name for name in names if weights[name].ndim < 2)
    return [{"names": matrices, "weight_decay": weight_decay}, {"names": vectors, "weight_decay": 0.0}]


def make_optimizer(model: TrainableModel, plan: Plan) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable weights, in the method's parameter groups or in those of `_by_dimension`.

    The objective's heads are groups of their own, with a learning rate of their own.

    Raises:
        RecipeError: nothing is left to train besides heads.
    """
    weights, weight_decay = model.trainable(), plan.settings.weight_decay
    heads = [name for name in weights if name.startswith(HEAD)]
    if model.attachment.groups:
        groups = model.attachment.groups(0)
    else:
        groups = _by_dimension(weights, weights.keys() - set(heads), weight_decay)
    if not any(group["names"] for group in groups):
        raise RecipeError("method: its settings leave nothing to train (is target_modules empty?).")
    head_ratio = (plan.head_learning_rate or plan.learning_rate) / plan.learning_rate
    groups += [{**group, "rate": head_ratio} for group in _by_dimension(weights, heads, weight_decay)]
    torch_groups = [
        {
            "params": [weights[name] for name in group["names"] if name in weights],
            "lr": plan.learning_rate,
            "weight_decay": group.get("weight_decay", weight_decay),
            "rate": group.get("rate", 1.0),  # relative to the schedule's learning rate; the loop multiplies by it
        }
        for group in groups
        if group["names"]
    ]
    return plan.settings.optimizer.make(torch_groups)
