"""Supervised fine-tuning: learn the assistant's words and where they stop, not the user's.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", arXiv 2203.02155, sec. 3.5:

    loss = - sum over the assistant's tokens of log p(x_t | x_<t)

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
                 read                                       learnt
"""

from typing import ClassVar

from weitiao.core.batch import IGNORE, Row
from weitiao.core.example import Chat
from weitiao.core.objective import LikelihoodObjective
from weitiao.core.processor import Processor
from weitiao.core.traits import Traits


class SFT(LikelihoodObjective):
    """Learn the assistant's words and where they stop."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Chat,
        splittable=True,
        is_nll=True,
        has_log_probs=True,
        overlong="error",
        overlong_reason="a cut answer teaches the model to stop in the middle",
    )

    def rows(self, example: Chat, processor: Processor) -> list[Row]:
        """Position t learns token t + 1 where the assistant says it; nothing is kept behind the last learnt token."""
        made: list[Row] = []
        for rendered in processor.chat(example.turns):
            end = max((i for i, said in enumerate(rendered.assistant_mask) if said), default=0)
            ids, said = rendered.ids[:end], rendered.assistant_mask[1 : end + 1]
            labels = [token if learnt else IGNORE for token, learnt in zip(rendered.ids[1 : end + 1], said)]
            made.append({"input_ids": ids, "labels": labels})
        return made
