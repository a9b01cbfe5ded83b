"""Lion: the sign of an average of gradient and momentum. Half of Adam's memory; use a rate 3 to 10 times smaller.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, algorithm 2:

    w -= rate * (sign(b1 m + (1 - b1) g) + decay * w)      m = b2 m + (1 - b2) g
"""

from typing import Any

import torch
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.train.optimizers._per_parameter import PerParameterOptimizer


class Lion(Optimizer):
    """Changes every weight by the same amount, in the direction of a sign."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Weight of the momentum in the update, and decay rate of the momentum."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return PerParameterOptimizer(groups, {"betas": self.betas}, _update)


def _update(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    m, rate, (b1, b2) = state.setdefault("exp_avg", torch.zeros_like(w)), group["lr"], group["betas"]
    w.mul_(1 - rate * group["weight_decay"])
    w.add_((m * b1).add_(g, alpha=1 - b1).sign_(), alpha=-rate)
    m.mul_(b2).add_(g, alpha=1 - b2)
