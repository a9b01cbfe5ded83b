"""Mixout: during training each number of a weight is replaced by the base's with probability p, for small data sets.

Lee, Cho and Kang 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models", arXiv
1909.11299, sec. 3 and eq. 5; u is the initial weight, M is 1 with probability p:

    W = (M u + (1 - M) w - p u) / (1 - p)          dropout is the case u = 0

The mean over M is w, so nothing is scaled at inference. A new head has no initial weight in the base and is left as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.batch import Batch, Loss
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.regularizer import InitialWeightsRegularizer
from weitiao.core.trainable_model import HEAD, TrainableModel


class Mixout(InitialWeightsRegularizer):
    """Randomly replace trained weights by the base model's."""

    swaps_weights: ClassVar[bool] = True
    adapter_refusal: ClassVar[Message] = Message(
        "method {method} leaves the base's weights as they are, and its dropout has the same effect; use one of: {methods}"
    )

    p: float = Field(default=0.7, ge=0, le=0.95)
    """Probability of the base's number; the paper uses 0.7 to 0.9."""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        mixed = {
            n: self._mixed(w, model.initial_weights[n]) for n, w in model.trainable().items() if not n.startswith(HEAD)
        }
        with swapped_weights(model.model, mixed):
            return plain()

    def _mixed(self, weight: Tensor, initial: Tensor) -> Tensor:
        if not self.p or not weight.requires_grad:
            return weight
        is_initial = torch.rand_like(weight) < self.p
        return torch.where(is_initial, initial, weight).sub(initial, alpha=self.p) / (1 - self.p)


@contextmanager
def swapped_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Inside, modules use these tensors as their weights, wherever a weight is used; the autograd graph keeps them."""
    by_weight = {id(weight): weights[name] for name, weight in model.named_parameters() if name in weights}
    slots = [(x, key) for x in model.modules() for key, y in x._parameters.items() if id(y) in by_weight]
    originals = [module._parameters[key] for module, key in slots]
    for module, key in slots:
        module._parameters[key] = by_weight[id(module._parameters[key])]  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for (module, key), original in zip(slots, originals):
            module._parameters[key] = original
