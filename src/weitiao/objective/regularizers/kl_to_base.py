"""Stay near the base model where the rows are learnt, against forgetting.

    loss + beta * sum over supervised tokens of KL(p || p_base)

Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv 2009.01325, sec. 3.4, have it as a reward; Li
and Hoiem 2016, "Learning without Forgetting", arXiv 1606.09282, eq. 2 to 4, as a loss, the other way round
(`direction: forward`). The base is the model with its method switched off: no second model is loaded. Both sides are
held whole, [N, V] fp32 each: with a large vocabulary this is most of the memory of a step, so take fewer tokens at
once (`train.micro_batch_tokens`).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field

from weitiao.core.batch import Batch, Loss
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer, add
from weitiao.core.trainable_model import TrainableModel, evaluating


class KLToBase(Regularizer):
    """Stay near what the base model would say."""

    asks_again: ClassVar[bool] = True

    beta: float = Field(default=0.1, ge=0)
    """How much a nat of difference counts."""
    direction: Literal["reverse", "forward"] = "reverse"
    """reverse: KL(tuned || base), where the tuned model speaks; forward: KL(base || tuned), all that the base would say."""

    def refuse(self, objective: Objective, method: Method) -> str:
        if not (objective.traits.generative and objective.traits.has_log_probs):
            return f"the head of {objective.name} is new, so the base says nothing that one could stay near"
        return ""

    def begin(self, model: TrainableModel) -> None:
        if model.attachment.set_enabled is None:
            words = "the method changes the base's own weights and keeps no copy to stay near; take lora, or l2_sp"
            raise RecipeError(f"regularizers: {self.name}: {words}.")

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        with torch.no_grad(), model.reference(), evaluating(model):  # before the tuned pass: some methods swap weights
            base = objective.log_probs(model, batch)
        with model.cache.on():
            loss, ours = plain(), objective.log_probs(model, batch)
        p, q = (ours, base) if self.direction == "reverse" else (base, ours)
        return add(loss, self.beta * (p.exp() * (p - q)).sum(), self.name)
