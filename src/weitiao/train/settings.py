"""What the loop needs to know, every automatic value resolved."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import Train
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.train.schedules import rate_at


@dataclass
class Plan:
    """Numbers, not wishes."""

    settings: Train
    steps: int
    learning_rate: float
    evaluate_every: int
    save_every: int
    step: str = "accumulate"
    """The part of train/steps/ that takes each step."""
    identity: dict[str, str] = field(default_factory=dict)
    """What a resumed run must have in common with this one."""
    seed: int = 0
    head_learning_rate: float | None = None
    """Peak learning rate of the objective's heads; None: that of all else."""

    @property
    def guarded(self) -> bool:
        return self.settings.guard == "on"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return rate_at(step, self.steps, self.learning_rate, self.settings.warmup_ratio, self.settings.lr_schedule)


def _by_shape(here: Mapping[str, Tensor], names: Collection[str], decay: float) -> list[dict[str, Any]]:
    matrices = sorted(name for name in names if here[name].ndim >= 2)
    vectors = sorted(name for name in names if here[name].ndim < 2)
    return [{"names": matrices, "weight_decay": decay}, {"names": vectors, "weight_decay": 0.0}]


def make_optimizer(model: TrainableModel, plan: Plan) -> torch.optim.Optimizer:
    """The recipe's optimizer over all that is trained: matrices decay, biases and norms do not; or the groups that
    the method asks for. Heads have a rate of their own."""
    here, decay = model.trainable(), plan.settings.weight_decay
    heads = [name for name in here if name.startswith(HEAD)]
    asked = model.attachment.groups(0) if model.attachment.groups else _by_shape(here, here.keys() - set(heads), decay)
    head_rate = (plan.head_learning_rate or plan.learning_rate) / plan.learning_rate
    asked += [{**group, "rate": head_rate} for group in _by_shape(here, heads, decay)]
    groups = [
        {
            "params": [here[name] for name in group["names"] if name in here],
            "lr": plan.learning_rate,
            "weight_decay": group.get("weight_decay", decay),
            "rate": group.get("rate", 1.0),
        }
        for group in asked
        if group["names"]
    ]
    if not any(group["names"] for group in asked if not set(group["names"]) <= set(heads)):
        raise RecipeError("method: its settings leave nothing to train (is target_modules empty?).")
    return plan.settings.optimizer.make(groups)  # pyright: ignore[reportAttributeAccessIssue]
