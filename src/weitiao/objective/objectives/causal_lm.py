"""Continued pretraining: trains on every next token of plain text.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1:

    loss = - sum_t log p(x_t | x_<t)

Every document ends with the end-of-text token, which is trained on, too. Documents are packed into one batch and do not
attend to each other. A document longer than max_length continues in the next row; no token's loss is lost at the cut.
"""

from typing import ClassVar

from weitiao.core.batch import IGNORE, Row
from weitiao.core.example import Text
from weitiao.core.messages import Message
from weitiao.core.objective import LikelihoodObjective
from weitiao.core.processor import Processor
from weitiao.core.traits import Traits


class CausalLM(LikelihoodObjective):
    """Train on plain text, token by token (continued pretraining)."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Text,
        is_nll=True,
        has_log_probs=True,
        splittable=True,
        overlong="split",
        overlong_reason=Message("a long document continues in the next row"),
    )

    def rows(self, example: Text, processor: Processor) -> list[Row]:
        """The document and its end-of-text token; position t predicts token t + 1."""
        ids = processor.text(example.text)
        if not ids or ids[-1] != processor.eos_id:
            ids = [*ids, processor.eos_id]
        return [{"input_ids": ids, "labels": [*ids[1:], IGNORE]}]
