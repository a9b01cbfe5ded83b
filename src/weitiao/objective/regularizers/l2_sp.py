"""L2-SP: weight decay towards the initial weights instead of zero.

Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", arXiv 1802.01483, eq. 1 and 2:

    loss + alpha / 2 |w - w0|^2  +  beta / 2 |head|^2          of the mean loss, whatever the batch
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field

from weitiao.core.batch import Batch, Loss
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.regularizer import InitialWeightsRegularizer, add
from weitiao.core.trainable_model import HEAD, TrainableModel


class L2SP(InitialWeightsRegularizer):
    """Weight decay towards the base model's weights."""

    adapter_refusal: ClassVar[Message] = Message(
        "method {method} leaves the base's weights as they are, and weight_decay already pulls its own towards zero; use "
        "one of: {methods}"
    )

    alpha: float = Field(default=0.01, ge=0)
    """Strength of the decay towards the base; the paper's best values are 0.001 to 0.1."""
    beta: float = Field(default=0.01, ge=0)
    """Strength of the decay of a new head, towards zero."""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        initial, loss = model.initial_weights, plain()
        penalty = torch.zeros((), device=model.device)
        for name, weight in model.trainable().items():
            if name.startswith(HEAD):
                penalty = penalty + self.beta / 2 * weight.float().square().sum()
            elif weight.requires_grad:
                penalty = penalty + self.alpha / 2 * (weight - initial[name]).float().square().sum()
        count = sum(objective.counts(batch).values())  # the loop divides by the window's count: the penalty remains, once
        return add(loss, penalty * count, self.name)
