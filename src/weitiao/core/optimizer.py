"""The contracts Optimizer and Clip: how the weights move, and how long their gradients may be."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from weitiao.core.registry import Component


class Optimizer(Component):
    """One file in train/optimizers/ holds one Optimizer: a frozen model of its settings."""

    @abstractmethod
    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the torch optimizer."""


class Clip(Component):
    """One file in train/stability/clips/ holds one Clip: a frozen model of its settings."""

    @abstractmethod
    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Scale the gradients down, in place.

        Args:
            norm: L2 norm of all gradients together.
            memory: what the clip remembers from step to step; saved in the State.
        """
