"""Decay towards where the weights began, not towards nought.

Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", arXiv 1802.01483, eq. 1 and 2:

    loss + alpha / 2 |w - w0|^2  +  beta / 2 |head|^2          of the mean loss, whatever the batch
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field

from weitiao.core.batch import Batch, Loss
from weitiao.core.objective import Objective
from weitiao.core.regularizer import FromTheStart, add
from weitiao.core.trainable_model import HEAD, TrainableModel


class L2SP(FromTheStart):
    """Decay towards the base's weights."""

    why_not: ClassVar[str] = "which weight_decay already draws to nought"

    alpha: float = Field(default=0.01, ge=0)
    """How much the way from the base counts; the paper's best lie between 0.001 and 0.1."""
    beta: float = Field(default=0.01, ge=0)
    """The same for a new head, from nought."""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        base, loss = model.initial_weights, plain()
        way = torch.zeros((), device=model.device)
        for name, weight in model.trainable().items():
            if name.startswith(HEAD):
                way = way + self.beta / 2 * weight.float().square().sum()
            elif weight.requires_grad:
                way = way + self.alpha / 2 * (weight - base[name]).float().square().sum()
        many = sum(objective.counts(batch).values())  # the loop divides by the window's count, so `way` is left once
        return add(loss, way * many, self.name)
