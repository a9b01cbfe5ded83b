"""R-Drop: two passes over the same rows, with different dropout, should give the same distribution.

Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", arXiv 2106.14448, eq. 1 to 4:

    loss = (nll(p1) + nll(p2)) / 2  +  alpha / 4 (KL(p1 || p2) + KL(p2 || p1))

(the paper adds both losses and doubles the batch; the mean keeps the size of the loss, and with it the learning rate).
Without any dropout both passes are the same and nothing is regularized: `r_drop` in the logged steps is then 0.
"""

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer, add
from weitiao.core.trainable_model import TrainableModel


class RDrop(Regularizer):
    """Make two passes with different dropout agree."""

    uses_log_probs: ClassVar[bool] = True

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the difference; the paper uses 1 to 5 for classification, 5 for translation."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        if objective.traits.has_log_probs:
            return Message("")
        return Message("objective {name} has no distribution over choices to compare", name=objective.name)

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        passes: list[tuple[Loss, Tensor]] = []
        for _ in range(2):
            with model.cache.on():
                passes.append((plain(), objective.log_probs(model, batch)))
        (first, p), (second, q) = passes
        mean = Loss({task: (first.totals[task] + second.totals[task]) / 2 for task in first.totals}, second.notes)
        return add(mean, self.alpha / 4 * (kl(p, q) + kl(q, p)), self.name)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, summed over rows of log-probabilities [N, C]."""
    return (p.exp() * (p - q)).sum()
