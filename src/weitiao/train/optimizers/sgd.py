"""SGD with momentum. Sutskever et al. 2013, "On the importance of initialization and momentum", eq. 1 and 2."""

import torch
from pydantic import Field

from weitiao.core.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent; stores one number per weight, or none without momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum; 0: none."""
    nesterov: bool = False
    """Use Nesterov momentum."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=True)
