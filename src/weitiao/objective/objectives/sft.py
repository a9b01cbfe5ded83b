"""Supervised fine-tuning: trains on the assistant's tokens and its stop token, not on the user's.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", arXiv 2203.02155, sec. 3.5:

    loss = - sum over the assistant's tokens of log p(x_t | x_<t)

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
                 context                                target
"""

from typing import ClassVar

from weitiao.core.batch import IGNORE, AnnotatedRow, Row
from weitiao.core.example import Chat
from weitiao.core.messages import Message
from weitiao.core.objective import LikelihoodObjective
from weitiao.core.processor import Processor
from weitiao.core.traits import Traits

CONTEXT_ONLY = Message("rows with answers that are context only")


class SFT(LikelihoodObjective):
    """Train on the assistant's answers, including where they stop."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Chat,
        is_nll=True,
        has_log_probs=True,
        splittable=True,
        overlong="error",
        overlong_reason=Message("a truncated answer would teach the model to stop in the middle"),
    )

    def rows(self, example: Chat, processor: Processor) -> list[Row]:
        """Position t predicts token t + 1 where the assistant says it; nothing follows the last supervised token."""
        rows: list[Row] = []
        for rendered in processor.chat(example.turns, example.tools):
            end = max((i for i, supervised in enumerate(rendered.assistant_mask) if supervised), default=0)
            targets = zip(rendered.ids[1 : end + 1], rendered.assistant_mask[1 : end + 1])
            labels = [token if supervised else IGNORE for token, supervised in targets]
            rows.append({"input_ids": rendered.ids[:end], "labels": labels})
        if any(turn.role == "assistant" and not turn.supervised for turn in example.turns):
            rows[0] = AnnotatedRow(**rows[0], notes=(CONTEXT_ONLY,))
        return rows
