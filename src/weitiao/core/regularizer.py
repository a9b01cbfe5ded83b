"""The contract Regularizer: a change of any objective's loss while training; validation keeps the plain loss.

    regularizers: [r_drop, {name: neftune, alpha: 5}]      the first is innermost

A regularizer is given the loss as a function of no arguments and may ask for it once, twice, or with noise on the
embeddings. It keeps sums as sums: what it adds is in the loss's own unit (a supervised token, a row), so that the loop's
division by the counts stays right.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.method import Method
from weitiao.core.objective import LossFunction, Objective
from weitiao.core.registry import Component, find, names
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.core.traits import Traits


class Regularizer(Component):
    """One file in objective/regularizers/ holds one Regularizer: a frozen model of its settings."""

    at_embeddings: ClassVar[bool] = False
    """It changes what the token embedding gives."""
    swaps_weights: ClassVar[bool] = False
    """It has other weights in the forward pass: a layer that runs once more in the backward pass would not find them."""

    asks_again: ClassVar[bool] = False
    """It asks the model for its distribution besides the loss: with other weights in between it would be another one."""

    @abstractmethod
    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        """The regularized loss.

        Args:
            plain: the loss as it is without this regularizer.
        """

    def begin(self, model: TrainableModel) -> None:
        """Look at the model before anything is learnt or loaded."""

    def refuse(self, objective: Objective, method: Method) -> str:
        """Why it cannot join this objective and method, in one sentence; "": it can."""
        return ""


class FromTheStart(Regularizer):
    """One that knows where the base's own weights began."""

    why_not: ClassVar[str]
    """What another method has instead."""

    def refuse(self, objective: Objective, method: Method) -> str:
        if method.trains_base:
            return ""
        those = [name for name in names(Method) if find(Method, name).trains_base]
        return f"{method.name} learns a change beside the base's weights, {self.why_not}; it is for {', '.join(those)}"

    def begin(self, model: TrainableModel) -> None:
        model.initial_weights = {n: p.detach().clone() for n, p in model.trainable().items() if not n.startswith(HEAD)}


class Regularized(LossFunction):
    """An objective whose training loss is changed; validation keeps the plain loss."""

    def __init__(self, objective: Objective, regularizers: Sequence[Regularizer], model: TrainableModel) -> None:
        self.objective, self.regularizers = objective, tuple(regularizers)
        for regularizer in self.regularizers:
            regularizer.begin(model)

    @property
    def traits(self) -> Traits:
        return self.objective.traits

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.objective.task_names

    def rollout(self, model: TrainableModel, batch: Batch) -> Batch:
        return self.objective.rollout(model, batch)

    def counts(self, batch: Batch) -> dict[str, float]:
        return self.objective.counts(batch)

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        """The objective's loss through every regularizer, the first innermost."""

        def regularized_by(number: int) -> Loss:
            if number == 0:
                return self.objective.loss(model, batch)
            return self.regularizers[number - 1].loss(model, self.objective, batch, lambda: regularized_by(number - 1))

        return regularized_by(len(self.regularizers))

    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        return self.objective.task_losses(model, batch)

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        return self.objective.segment_losses(model, batch)

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        return self.objective.log_probs(model, batch)


def regularized(objective: Objective, regularizers: Sequence[Regularizer], model: TrainableModel) -> LossFunction:
    """The loss that is trained on.

    Args:
        model: before its first step.
    """
    return Regularized(objective, regularizers, model) if regularizers else objective


def add(loss: Loss, more: Tensor, name: str) -> Loss:
    """The loss and something on top of it, of the same unit; noted under a name.

    Raises:
        ValueError: the loss has several tasks, and nobody knows whose the rest would be.
    """
    if len(loss.totals) != 1:
        raise ValueError(f"{name} needs one task, here are {len(loss.totals)}")
    ((task, total),) = loss.totals.items()
    return Loss({task: total + more}, {**loss.notes, name: float(more.detach())})
