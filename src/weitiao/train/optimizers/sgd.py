"""SGD with momentum. Sutskever et al. 2013, "On the importance of initialization and momentum", eq. 1 and 2."""

import torch
from pydantic import Field

from weitiao.core.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent; stores one number a weight, or none without momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the last move that is kept; 0: none."""
    nesterov: bool = False
    """Look ahead along the momentum before taking the gradient."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=True)
