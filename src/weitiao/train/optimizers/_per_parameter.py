"""The loop that hand-written optimizers share: every weight that has a gradient, one after another."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Move = Callable[[Tensor, Tensor, dict[str, Any], dict[str, Any]], None]


class EachWeight(torch.optim.Optimizer):
    """An optimizer that is a function of (weight, gradient, the weight's memory, the group's settings)."""

    def __init__(self, groups: list[dict], settings: dict[str, Any], move: Move) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, **settings})
        self.move = move

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, weight.grad, self.state[weight], group)
