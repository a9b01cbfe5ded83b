"""Mixout: while training, each number of a weight is by chance the base's own, against forgetting in small data.

Lee, Cho and Kang 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models", arXiv
1909.11299, sec. 3 and eq. 5; u is where the weight began, M is 1 with probability p:

    W = (M u + (1 - M) w - p u) / (1 - p)          dropout is the case u = 0

The mean over M is w, so nothing is scaled when the model is used. A new head began nowhere and is left as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.batch import Batch, Loss
from weitiao.core.objective import Objective
from weitiao.core.regularizer import FromTheStart
from weitiao.core.trainable_model import HEAD, TrainableModel


class Mixout(FromTheStart):
    """Numbers of the weights are the base's own, by chance."""

    swaps_weights: ClassVar[bool] = True
    why_not: ClassVar[str] = "whose own dropout does the same"

    p: float = Field(default=0.7, ge=0, le=0.95)
    """How often; the paper takes 0.7 to 0.9."""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        mixed = {
            n: self._mixed(w, model.initial_weights[n]) for n, w in model.trainable().items() if not n.startswith(HEAD)
        }
        with instead(model.model, mixed):
            return plain()

    def _mixed(self, weight: Tensor, base: Tensor) -> Tensor:
        if not self.p or not weight.requires_grad:
            return weight
        kept = torch.rand_like(weight) < self.p
        return torch.where(kept, base, weight).sub(base, alpha=self.p) / (1 - self.p)


@contextmanager
def instead(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Inside, modules have these in place of their weights, wherever a weight is used; the graph keeps them."""
    by_weight = {id(weight): weights[name] for name, weight in model.named_parameters() if name in weights}
    places = [(x, key) for x in model.modules() for key, y in x._parameters.items() if id(y) in by_weight]
    were = [module._parameters[key] for module, key in places]
    for module, key in places:
        module._parameters[key] = by_weight[id(module._parameters[key])]  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for (module, key), was in zip(places, were):
            module._parameters[key] = was
