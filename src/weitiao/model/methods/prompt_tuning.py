"""Prompt tuning: a few soft tokens before every row are trained; the model stays frozen.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv 2104.08691, sec. 2:

    [p0 p1 ... pP-1 | x0 x1 ... ]  -> model         p [P, D] trained, initialized from token embeddings (sec. 3.2)

Costs P D weights in total and P tokens of context in every row. It needs a far higher learning rate than LoRA and a large
model: below about a billion parameters other methods do better (figure 1).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.virtual_tokens import add_virtual_tokens, prompt_as_peft, random_token_ids


class PromptTuning(Method):
    """Train soft tokens before every row."""

    learning_rate: ClassVar[float] = 1e-2
    learning_rate_reason: ClassVar[Message] = Message(
        "soft prompts are a few vectors and need far higher rates than matrices"
    )
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Number P of soft tokens; 5 to 100 is usual."""
    init: str = "vocabulary"
    """Initial soft tokens: vocabulary (random tokens), or a text of yours, repeated or cut to num_virtual_tokens."""
    init_ids: tuple[int, ...] = ()
    """Token ids of `init`; filled in."""

    def fit(self, tokenize: Callable[[str], list[int]]) -> "PromptTuning":
        """The same method with the token ids of its initial text."""
        if self.init == "vocabulary" or self.init_ids:
            return self
        ids = tokenize(self.init) * self.num_virtual_tokens
        return self.model_copy(update={"init_ids": tuple(ids[: self.num_virtual_tokens])})

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Add virtual tokens whose embeddings are trained."""
        embedding: Any = model.get_input_embeddings()
        vocab_size = embedding.num_embeddings
        ids = torch.tensor(self.init_ids) if self.init_ids else random_token_ids(vocab_size, self.num_virtual_tokens)
        prompt = nn.Parameter(embedding(ids.to(embedding.weight.device)).detach().float().clone())  # [P, D]
        virtual_tokens = add_virtual_tokens(model, self.num_virtual_tokens, lambda: prompt)
        model.register_parameter("soft_prompt", prompt)

        def from_peft(tensors: dict[str, Tensor]) -> None:
            prompt.data.copy_(tensors["prompt_embeddings"])

        return Attachment(
            trainable={"soft_prompt"},
            virtual_tokens=lambda: virtual_tokens.ids,
            set_enabled=virtual_tokens.set_enabled,
            as_peft=lambda: prompt_as_peft(model, prompt),
            from_peft=from_peft,
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "PromptTuning | None":
        """PEFT's prompt tuning, or its P-tuning, whose file holds the finished prompt."""
        if config.get("peft_type") not in ("PROMPT_TUNING", "P_TUNING"):
            return None
        return cls(num_virtual_tokens=config["num_virtual_tokens"])
