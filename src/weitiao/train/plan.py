"""What the loop needs to know, every automatic value resolved."""

from dataclasses import dataclass, field

import torch

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import Train
from weitiao.core.tunable import TunableModel
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

    @property
    def guarded(self) -> bool:
        return self.settings.guard == "on"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return rate_at(step, self.steps, self.learning_rate, self.settings.warmup, self.settings.schedule)


def make_optimizer(model: TunableModel, plan: Plan) -> torch.optim.Optimizer:
    """The recipe's optimizer over all that is trained: matrices decay, biases and norms do not; or the groups that
    the method asks for."""
    here, decay = model.trainable(), plan.settings.weight_decay
    asked = model.attachment.groups(0) if model.attachment.groups else None
    if asked is None:
        matrices = [name for name, p in here.items() if p.ndim >= 2]
        vectors = [name for name, p in here.items() if p.ndim < 2]
        asked = [{"names": matrices, "weight_decay": decay}, {"names": vectors, "weight_decay": 0.0}]
    groups = [
        {
            "params": [here[name] for name in group["names"]],
            "lr": plan.learning_rate,
            "weight_decay": group.get("weight_decay", decay),
            "rate": group.get("rate", 1.0),
        }
        for group in asked
        if group["names"]
    ]
    if not groups:
        raise RecipeError("method: its settings leave nothing to train (is target_modules empty?).")
    return plan.settings.optimizer.make(groups)  # pyright: ignore[reportAttributeAccessIssue]
