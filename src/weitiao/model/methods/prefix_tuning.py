"""Prefix tuning: keys and values before every row, in every layer, produced by a small network during training.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190, sec. 4.2, eq. 3:

    w [P, D] --> MLP (tanh) --> K, V [L, 2, P, K]  --> attended to by every token of the row, in every layer

The network stabilizes training (sec. 4.3) and is not needed afterwards. Its output is added to the keys and values of
real tokens, the paper's best initialization (sec. 7.5).
"""

from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.prefix import attach_prefix


class PrefixTuning(Method):
    """Train keys and values before every row, through a small network."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[Message] = Message("the network is made of matrices; 1e-3 suits small networks")
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Number P of virtual tokens before every row; 10 to 200 is usual."""
    prefix_projection: bool = True
    """Train keys and values through the network; false: directly, as P-tuning v2 does."""
    encoder_hidden_size: int = Field(default=512, ge=1)
    """Hidden width of the network."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Add a prefix to every layer."""
        return attach_prefix(model, self.num_virtual_tokens, self.encoder_hidden_size if self.prefix_projection else None)
