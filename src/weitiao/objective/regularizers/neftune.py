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
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.regularizer import Regularizer
from weitiao.core.trainable_model import TrainableModel, changed_embeddings
from weitiao.objective.embedding_rows import no_token_to_row_map


class NEFTune(Regularizer):
    """Noise on the embeddings during training."""

    changes_embeddings: ClassVar[bool] = True

    alpha: float = Field(default=5.0, ge=0)
    """Noise scale; the paper uses 5, 10 or 15."""

    def refusal(self, objective: Objective, method: Method) -> Message:
        return no_token_to_row_map(objective)

    def loss(self, model: TrainableModel, objective: Objective, batch: Batch, plain: Callable[[], Loss]) -> Loss:
        def add_noise(embedded: Tensor, row: Tensor) -> Tensor:  # [..., T, D], [T]
            scale = self.alpha / (row.bincount()[row] * embedded.shape[-1]).sqrt()
            return embedded + (torch.rand_like(embedded) * 2 - 1) * scale[:, None].to(embedded.dtype)

        with changed_embeddings(model, add_noise, batch):
            return plain()
