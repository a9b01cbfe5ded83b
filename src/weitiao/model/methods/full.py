"""Full fine-tuning: every weight is trained.

    W <- W - rate * dW        for every W, embeddings and norms included

The most that can be learnt and the most that can be forgotten. Costs 16 bytes a weight with AdamW (weights, gradients
and two moments in fp32). Use a rate about ten times smaller than for LoRA.
"""

from typing import ClassVar

from torch import nn

from weitiao.core.method import Attachment, Method


class Full(Method):
    """Train every weight."""

    learning_rate: ClassVar[float] = 2e-5
    learning_rate_reason: ClassVar[str] = "usual for full fine-tuning; every weight moves, so each moves little"
    trains_base: ClassVar[bool] = True

    def attach(self, model: nn.Module) -> Attachment:
        """Every parameter is trainable; nothing is put in."""
        model.requires_grad_(True)
        names = {name for name, _ in model.named_parameters()}  # tied weights are named once
        return Attachment(trainable=names, merge=lambda: None)
