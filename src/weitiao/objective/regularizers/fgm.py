"""Adversarial training: embeddings are moved in the direction in which the loss grows fastest, and that loss counts, too.

Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification", arXiv 1605.07725, eq. 2 to 5
(`steps: 1`, the fast gradient method); Madry et al. 2018, arXiv 1706.06083, eq. 2 for more (projected gradient descent):

    g = d loss / d embeddings of a row       r = epsilon * g / |g|      (steps > 1: r climbs, and is kept within epsilon)
    (loss + weight * loss(embeddings + r)) / (1 + weight)
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer
from weitiao.core.trainable_model import TrainableModel, changed_embeddings
from weitiao.objective.embedding_rows import no_token_to_row_map


class FGM(Regularizer):
    """Train on the worst embeddings within a radius, too (adversarial training)."""

    changes_embeddings: ClassVar[bool] = True

    epsilon: float = Field(default=1.0, gt=0)
    """L2 norm of the perturbation of a row's embeddings."""
    steps: int = Field(default=1, ge=1)
    """1: the fast gradient method; more: projected gradient descent."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the adversarial loss relative to the plain loss."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        return no_token_to_row_map(objective)

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        clean, perturbation = plain(), None
        for _ in range(self.steps):
            perturbation = self._climb(model, batch, plain, perturbation)
        with changed_embeddings(model, lambda embedded, _: embedded + perturbation, batch):  # pyright: ignore[reportOperatorIssue]
            perturbed = plain()
        totals = {t: (clean.totals[t] + self.weight * perturbed.totals[t]) / (1 + self.weight) for t in clean.totals}
        return Loss(totals, {**clean.notes, self.name: sum(float(x.detach()) for x in perturbed.totals.values())})

    def _climb(self, model: TrainableModel, batch: Batch, plain: Callable[[], Loss], previous: Tensor | None) -> Tensor:
        """The perturbation [..., T, D] after one more step."""
        calls: list[tuple[Tensor, Tensor]] = []

        def perturb(embedded: Tensor, row: Tensor) -> Tensor:
            leaf = (torch.zeros_like(embedded) if previous is None else previous.clone()).detach().requires_grad_()
            calls.append((leaf, row))
            return embedded + leaf

        with changed_embeddings(model, perturb, batch):
            total = sum(plain().totals.values(), torch.zeros((), device=model.device))
        leaf, row = calls[0]
        gradient = torch.autograd.grad(total, leaf)[0]
        step = self.epsilon if self.steps == 1 else 2 * self.epsilon / self.steps
        moved = leaf.detach() + gradient * (step / _row_norm(gradient, row).clamp(min=1e-12)).to(gradient.dtype)
        return moved * (self.epsilon / _row_norm(moved, row).clamp(min=self.epsilon)).to(moved.dtype)


def _row_norm(x: Tensor, row: Tensor) -> Tensor:
    """[T, 1]: the L2 norm of x [..., T, D] over all tokens of a token's row."""
    squares = x.float().square().sum(-1).reshape(-1)  # [T]
    sums = torch.zeros(int(row[-1]) + 1, device=x.device).index_add_(0, row, squares)
    return sums.sqrt()[row, None]
