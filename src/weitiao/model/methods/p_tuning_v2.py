"""P-tuning v2: deep prompts. Trained keys and values before every row, in every layer.

Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks",
arXiv 2110.07602, sec. 3.2-3.3:

    K, V [L, 2, P, K]  trained directly, without a reparametrization network; meant for understanding tasks, with a head

Costs 2 L P K weights. Stored as PEFT's prefix tuning, with the same logits there (not for families that normalize their
keys).
"""

from typing import Any, ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.prefix import attach_prefix


class PTuningV2(Method):
    """Train keys and values before every row, in every layer."""

    learning_rate: ClassVar[float] = 2e-2
    learning_rate_reason: ClassVar[Message] = Message(
        "the paper uses about 5e-3; in about 100 steps 2e-2 reached a lower loss (docs/methods.md)"
    )
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Number P of virtual tokens before every row; under 20 for simple tasks (sec. 3.3)."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Add a prefix to every layer."""
        return attach_prefix(model, self.num_virtual_tokens)

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "PTuningV2 | None":
        """PEFT's prefix tuning, whose file holds the finished prefix."""
        return cls(num_virtual_tokens=config["num_virtual_tokens"]) if config.get("peft_type") == "PREFIX_TUNING" else None
