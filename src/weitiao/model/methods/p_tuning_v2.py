"""P-tuning v2: deep prompts. Keys and values before every row, in every layer, learnt themselves.

Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks",
arXiv 2110.07602, sec. 3.2-3.3:

    K, V [L, 2, P, K]  learnt, without a network in between; meant for understanding tasks, with a head

Costs 2 L P K weights. Stored as PEFT's prefix tuning, and equal there (not for families that normalise their keys).
"""

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.prefix import attach_prefix


class PTuningV2(Method):
    """Learn keys and values before every row, in every layer."""

    learning_rate: ClassVar[float] = 2e-2
    learning_rate_reason: ClassVar[str] = (
        "the paper's rates lie around 5e-3; in about 100 steps 2e-2 learnt more (docs/methods.md)"
    )
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Places P before every row; simple tasks like short ones, under 20 (sec. 3.3)."""

    def attach(self, model: nn.Module) -> Attachment:
        """A prefix in every layer."""
        return attach_prefix(model, self.num_virtual_tokens)

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "PTuningV2 | None":
        """PEFT's prefix tuning: what it stores is the finished prefix."""
        return cls(num_virtual_tokens=config["num_virtual_tokens"]) if config.get("peft_type") == "PREFIX_TUNING" else None
