"""R-Drop: the same rows twice, under two dropouts, shall have the same answers.

Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", arXiv 2106.14448, eq. 1 to 4:

    loss = (nll(p1) + nll(p2)) / 2  +  alpha / 4 (KL(p1 || p2) + KL(p2 || p1))

(the paper adds both losses and doubles the batch; the mean keeps the loss's size, and with it the learning rate).
Without any dropout both passes are one, and nothing is regularized: that is refused by the figures, not by this file; look
at `r_drop` in the journal.
"""

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer, add
from weitiao.core.trainable_model import TrainableModel


class RDrop(Regularizer):
    """Two passes under two dropouts shall say the same."""

    asks_again: ClassVar[bool] = True

    alpha: float = Field(default=1.0, ge=0)
    """How much their difference counts; the paper takes 1 to 5 for classification, 5 for translation."""

    def refuse(self, objective: Objective, method: Method) -> str:
        return "" if objective.traits.has_log_probs else f"{objective.name} has no distribution over choices to compare"

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        passes = []
        for _ in range(2):
            with model.cache.on():
                passes.append((plain(), objective.log_probs(model, batch)))
        (one, p), (two, q) = passes
        both = Loss({task: (one.totals[task] + two.totals[task]) / 2 for task in one.totals}, two.notes)
        return add(both, self.alpha / 4 * (kl(p, q) + kl(q, p)), self.name)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities [N, C]: the sum over rows of KL(p || q), in nats."""
    return (p.exp() * (p - q)).sum()
