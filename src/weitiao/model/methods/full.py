"""Full fine-tuning: every weight is trained.

    W <- W - rate * dW        for every W, embeddings and norms included

It learns the most and forgets the most. Costs 16 bytes per weight with AdamW (weights, gradients and two moments in
fp32). Use a rate about ten times smaller than for LoRA.
"""

from typing import ClassVar

from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_structure import fixed_positions


class Full(Method):
    """Train every weight."""

    learning_rate: ClassVar[float] = 2e-5
    learning_rate_reason: ClassVar[Message] = Message(
        "usual for full fine-tuning: every weight changes, so each changes little"
    )
    trains_base: ClassVar[bool] = True

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Make every parameter trainable, but for position embeddings that are a fixed formula; no module is added."""
        model.requires_grad_(True)
        fixed = fixed_positions(model)
        names = {name for name, _ in model.named_parameters() if name not in fixed}  # tied weights appear once
        for name in fixed:
            model.get_parameter(name).requires_grad_(False)
        return Attachment(trainable=names, merge=lambda: None)
