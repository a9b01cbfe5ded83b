"""The base of hand-written optimizers: a function that updates one parameter, applied to all that have a gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, dict[str, Any], dict[str, Any]], None]
"""(weight, gradient, the weight's optimizer state, its group's settings): updates weight and state, in place."""


class PerParameterOptimizer(torch.optim.Optimizer):
    """An optimizer that updates one parameter after another."""

    def __init__(self, groups: list[dict], settings: dict[str, Any], update: Update) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, **settings})
        self.update = update

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, weight.grad, self.state[weight], group)
