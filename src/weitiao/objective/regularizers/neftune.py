"""NEFTune: noise on the embeddings.

Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv 2310.05914, alg. 1, for a row of L
tokens of width D:

    embeddings + alpha / sqrt(L D) * uniform(-1, 1)            alpha 5, 10 or 15
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


class NEFTune(Regularizer):
    """Noise on the embeddings while training."""

    at_embeddings: ClassVar[bool] = True

    alpha: float = Field(default=5.0, ge=0)
    """The noise's size; the paper takes 5, 10 or 15."""

    def refuse(self, objective: Objective, method: Method) -> str:
        words = f"{objective.name} packs its texts anew, so which row an embedding belongs to is not known here"
        if objective.traits.needs_encoder_decoder:
            return "encoder and decoder embed apart, and which row an embedding belongs to is not known here"
        return words if objective.traits.repacks_segments else ""

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        def noisy(embedded: Tensor, row: Tensor) -> Tensor:  # [..., T, D], [T]
            reach = self.alpha / (row.bincount()[row] * embedded.shape[-1]).sqrt()
            return embedded + (torch.rand_like(embedded) * 2 - 1) * reach[:, None].to(embedded.dtype)

        with changed_embeddings(model, noisy, batch):
            return plain()
