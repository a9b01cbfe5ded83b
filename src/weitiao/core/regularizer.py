"""The contract Regularizer: changes any objective's training loss; validation keeps the plain loss.

    regularizers: [r_drop, {name: neftune, alpha: 5}]      the first is innermost

A regularizer gets the loss as a function without arguments, and may call it once, twice, or with noise on the embeddings.
It keeps sums as sums: what it adds is in the loss's own unit (a supervised token, a row), so that the loop's division by
the counts stays right.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import LossFunction, Objective
from weitiao.core.registry import Component, find, names
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.core.traits import Traits


class Regularizer(Component):
    """One file in objective/regularizers/ holds one Regularizer: a frozen model of its settings."""

    changes_embeddings: ClassVar[bool] = False
    """It changes the output of the token embedding."""
    swaps_weights: ClassVar[bool] = False
    """It replaces weights during the forward pass: a layer that is recomputed in the backward pass would not find them."""
    uses_log_probs: ClassVar[bool] = False
    """It compares the model's distributions next to the loss: with other weights in between they would differ."""

    @abstractmethod
    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        """The regularized loss.

        Args:
            plain: computes the loss without this regularizer.
        """

    def before_training(self, model: TrainableModel) -> None:
        """Look at the model before any weight is trained or loaded."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        """Why it cannot be combined with this objective and method; empty: it can."""
        return Message("")


class InitialWeightsRegularizer(Regularizer):
    """A regularizer that compares the base model's weights with what they were before training."""

    adapter_refusal: ClassVar[Message]
    """Why it is of no use with a method that leaves the base's weights as they are."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        if method.trains_base:
            return Message("")
        methods = ", ".join(name for name in names(Method) if find(Method, name).trains_base)
        return Message(self.adapter_refusal, method=method.name, methods=methods)

    def before_training(self, model: TrainableModel) -> None:
        model.initial_weights = {n: p.detach().clone() for n, p in model.trainable().items() if not n.startswith(HEAD)}


class Regularized(LossFunction):
    """An objective whose training loss is changed; validation keeps the plain loss."""

    def __init__(self, objective: Objective, regularizers: Sequence[Regularizer], model: TrainableModel) -> None:
        self.objective, self.regularizers = objective, tuple(regularizers)
        for regularizer in self.regularizers:
            regularizer.before_training(model)

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


def add(loss: Loss, penalty: Tensor, name: str) -> Loss:
    """The loss plus a penalty in the same unit, which is logged under a name.

    Raises:
        ValueError: the loss has several tasks, so it is unknown which of them the penalty belongs to.
    """
    if len(loss.totals) != 1:
        raise ValueError(f"{name} needs a loss of one task, but there are {len(loss.totals)}")
    ((task, total),) = loss.totals.items()
    return Loss({task: total + penalty}, {**loss.notes, name: float(penalty.detach())})
