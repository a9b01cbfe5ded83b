"""Adam. Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980, algorithm 1.

Weight decay, if any, is added to the gradient (L2), not decoupled; for decoupled decay, use adamw.
"""

import torch
from pydantic import Field

from weitiao.core.optimizer import Optimizer


class Adam(Optimizer):
    """Adam; weight decay is L2 regularization."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of its square."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the square root of the second moment, for numerical stability."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return torch.optim.Adam(groups, betas=self.betas, eps=self.epsilon, fused=True)
