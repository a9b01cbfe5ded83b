"""Prefix tuning: keys and values before every row, in every layer, made by a small network while training.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190, sec. 4.2, eq. 3:

    w [P, D] --> MLP (tanh) --> K, V [L, 2, P, K]  --> looked at by every token of the row, in every layer

The network steadies the training (sec. 4.3) and is not needed afterwards. Here it adds to the keys and values of real
words, which is where the paper starts from (sec. 7.5).
"""

from typing import ClassVar

from pydantic import Field
from torch import nn

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.prefix import attach_prefix


class PrefixTuning(Method):
    """Learn keys and values before every row, through a small network."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "the network's matrices learn at usual rates; 1e-3 suits small networks"
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Places P before every row; 10 to 200 is usual."""
    prefix_projection: bool = True
    """Learn them through the network; false: themselves, as P-tuning v2 does."""
    encoder_hidden_size: int = Field(default=512, ge=1)
    """Width inside the network."""

    def attach(self, model: nn.Module) -> Attachment:
        """A prefix in every layer."""
        return attach_prefix(model, self.num_virtual_tokens, self.encoder_hidden_size if self.prefix_projection else None)
