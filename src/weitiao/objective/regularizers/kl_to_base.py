"""Stay close to the base model on the training rows, against forgetting.

    loss + beta * sum over supervised tokens of KL(p || p_base)

Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv 2009.01325, sec. 3.4, use it in the reward; Li and
Hoiem 2016, "Learning without Forgetting", arXiv 1606.09282, eq. 2 to 4, as a loss in the other direction (`direction:
forward`). The base is the model with its method switched off: no second model is loaded. Both distributions are in memory,
[N, V] fp32 each: with a large vocabulary this is most of a step's memory, so use fewer tokens at once
(`train.micro_batch_tokens`).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field

from weitiao.core.batch import Batch, Loss
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer, add
from weitiao.core.trainable_model import TrainableModel, evaluating


class KLToBase(Regularizer):
    """Stay close to the base model's distribution."""

    uses_log_probs: ClassVar[bool] = True

    beta: float = Field(default=0.1, ge=0)
    """Weight of the KL divergence."""
    direction: Literal["reverse", "forward"] = "reverse"
    """reverse: KL(tuned || base), over what the tuned model generates; forward: KL(base || tuned), over what the base
    generates."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        if objective.traits.generative and objective.traits.has_log_probs:
            return Message("")
        return Message(
            "the head of objective {name} is new, so the base has no distribution to compare", name=objective.name
        )

    def before_training(self, model: TrainableModel) -> None:
        if model.attachment.set_enabled is None:
            raise RecipeError(
                "regularizers: kl_to_base: the method changes the base's own weights and keeps no copy of them; use "
                "method: lora or regularizer l2_sp"
            )

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        with torch.no_grad(), model.reference(), evaluating(model):  # before the tuned pass: some methods swap weights
            base = objective.log_probs(model, batch)
        with model.cache.on():
            loss, tuned = plain(), objective.log_probs(model, batch)
        p, q = (tuned, base) if self.direction == "reverse" else (base, tuned)
        return add(loss, self.beta * (p.exp() * (p - q)).sum(), self.name)
