"""Lion: the sign of a mix of gradient and momentum. Half of Adam's memory; use a rate 3 to 10 times smaller.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, algorithm 2:

    w -= rate * (sign(b1 m + (1 - b1) g) + decay * w)      m = b2 m + (1 - b2) g
"""

from collections.abc import Callable

import torch
from torch import Tensor

from weitiao.core.registry import Part


class Lion(Part):
    """Moves each weight by the same amount, in the sign's direction."""

    betas: tuple[float, float] = (0.9, 0.99)
    """How much of the momentum is in the move, and how slowly the momentum moves."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return LionOptimizer(groups, betas=self.betas)


class LionOptimizer(torch.optim.Optimizer):
    """torch has none of its own."""

    def __init__(self, groups: list[dict], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 1e-4, "weight_decay": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    momentum = state.setdefault("exp_avg", torch.zeros_like(p))
                    _move(p, p.grad, momentum, group["lr"], group["weight_decay"], *group["betas"])


def _move(w: Tensor, g: Tensor, m: Tensor, rate: float, decay: float, b1: float, b2: float) -> None:
    w.mul_(1 - rate * decay)
    w.add_((m * b1).add_(g, alpha=1 - b1).sign_(), alpha=-rate)
    m.mul_(b2).add_(g, alpha=1 - b2)
