"""Adversarial training: the embeddings are moved to where the loss grows fastest, and the loss there is learnt as well.

Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification", arXiv 1605.07725, eq. 2 to 5
(`steps: 1`, the fast gradient method); Madry et al. 2018, arXiv 1706.06083, eq. 2 for more (projected gradient descent):

    g = d loss / d embeddings of a row          r = radius * g / |g|      (steps > 1: r climbs, and is kept within radius)
    (loss + weight * loss(embeddings + r)) / (1 + weight)
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer
from weitiao.core.trainable_model import TrainableModel, changed_embeddings


class FGM(Regularizer):
    """Learn the worst embeddings within a radius, too."""

    at_embeddings: ClassVar[bool] = True

    epsilon: float = Field(default=1.0, gt=0)
    """How far a row's embeddings are moved, as one vector (L2)."""
    steps: int = Field(default=1, ge=1)
    """1: the fast gradient method; more: projected gradient descent."""
    weight: float = Field(default=1.0, ge=0)
    """How much the moved rows' loss counts beside the plain one's."""

    def refuse(self, objective: Objective, method: Method) -> str:
        words = f"{objective.name} packs its texts anew, so which row an embedding belongs to is not known here"
        if objective.traits.needs_encoder_decoder:
            return "encoder and decoder embed apart, and which row an embedding belongs to is not known here"
        return words if objective.traits.repacks_segments else ""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        calm, move = plain(), None
        for _ in range(self.steps):
            move = self._climb(model, batch, plain, move)
        with changed_embeddings(model, lambda embedded, _: embedded + move, batch):  # pyright: ignore[reportOperatorIssue]
            moved = plain()
        mixed = {t: (calm.totals[t] + self.weight * moved.totals[t]) / (1 + self.weight) for t in calm.totals}
        return Loss(mixed, {**calm.notes, self.name: sum(float(x.detach()) for x in moved.totals.values())})

    def _climb(self, model: TrainableModel, batch: Batch, plain: Callable[[], Loss], move: Tensor | None) -> Tensor:
        """Where the embeddings are moved to, one step further: [..., T, D]."""
        asked: list[tuple[Tensor, Tensor]] = []

        def at(embedded: Tensor, row: Tensor) -> Tensor:
            here = (torch.zeros_like(embedded) if move is None else move.clone()).detach().requires_grad_()
            asked.append((here, row))
            return embedded + here

        with changed_embeddings(model, at, batch):
            total = sum(plain().totals.values(), torch.zeros((), device=model.device))
        here, row = asked[0]
        gradient = torch.autograd.grad(total, here)[0]
        reach = self.epsilon if self.steps == 1 else 2 * self.epsilon / self.steps
        gone = here.detach() + gradient * (reach / _length(gradient, row).clamp(min=1e-12)).to(gradient.dtype)
        return gone * (self.epsilon / _length(gone, row).clamp(min=self.epsilon)).to(gone.dtype)


def _length(x: Tensor, row: Tensor) -> Tensor:
    """[T, 1]: the L2 norm over all of the row that a token is in; x [..., T, D]."""
    each = x.float().square().sum(-1).reshape(-1)  # [T]
    sums = torch.zeros(int(row[-1]) + 1, device=x.device).index_add_(0, row, each)
    return sums.sqrt()[row, None]
