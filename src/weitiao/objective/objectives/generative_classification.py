"""Classification by a model that writes: the class is its answer, and no head is needed.

Radford et al. 2019 (GPT-2), sec. 3; Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv 2005.14165, sec. 2.4:

    learnt      loss = - sum over the words of the class and the stop token of log p(x_t | the question, x_<t)
    answered    p(c) = softmax over classes of log p(the words of c, stop | the question)

    <user> Won a prize! Which is it: ham, spam? ... <assistant> spam <stop>
                           read                                 learnt

The stop token counts, so that a class which is the beginning of another one has no advantage. It is learnt as `sft` is; the
difference is that only classes can be answered, with their probabilities.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.errors import DataError
from weitiao.core.example import TextLabel, Turn
from weitiao.core.generation import PrefixCache, score_options
from weitiao.core.objective import LikelihoodObjective
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

MOST = 100  # classes that fit into a question
TOGETHER = 256  # answers that are scored at once: prompts x classes


class PromptRow(Row):
    """A row with a text inside a question."""

    text: tuple[int, int]
    """Where the text stands, in tokens."""


class GenerativeClassification(LikelihoodObjective):
    """Tell which class a text belongs to, in a written answer that is one of the classes."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextLabel,
        is_nll=True,
        has_predict=True,
        overlong="truncate",
        overlong_reason="the beginning of a long text mostly says what it is; the question stays whole",
        metrics=("loss", "accuracy", "f1"),
    )

    prompt: str = Field(default="{text}\n\nWhich is it: {classes}? Answer with one of them and nothing else.")
    """What is asked; {text} is the text, {classes} are the classes."""
    classes: tuple[str, ...] = ()
    """The classes, in the order in which they are asked; none: those of the training data."""

    @field_validator("prompt")
    @classmethod
    def _holds_the_text(cls, prompt: str) -> str:
        if prompt.count("{text}") != 1:
            raise ValueError("write {text} once, where the text goes; and {classes}, where the classes are to be listed")
        return prompt

    def fit(self, examples: Sequence[TextLabel]) -> "GenerativeClassification":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective that knows its classes."""
        counts = Counter(label for x in examples for label in x.labels)
        classes = self.classes or tuple(sorted(counts))
        if len(classes) < 2:
            raise DataError(f"data: there is nothing to tell apart; the classes are: {', '.join(classes) or 'none'}.")
        if len(classes) > MOST:
            words = f"{len(classes):,} classes, and a question lists at most {MOST}. Take objective: classification"
            raise DataError(f"data: {words}, or say which column it is with columns: {{text: ..., label: ...}}.")
        return self.model_copy(update={"classes": classes})

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TextLabel, processor: Processor) -> list[Row]:
        """The question and the class; nothing is kept behind the last learnt token."""
        if len(example.labels) != 1:
            raise ValueError(f"{len(example.labels)} classes where one is wanted; objective: classification takes several")
        if example.labels[0] not in self.classes:
            raise ValueError(f"the class {example.labels[0]!r} is not among those learnt: {', '.join(self.classes)[:200]}")
        row, said = self.encode_input(example, processor), self._words(example.labels[0], processor)
        ids = list(row["input_ids"])
        return [PromptRow(**{**row, "input_ids": [*ids, *said[:-1]], "labels": [*[IGNORE] * (len(ids) - 1), *said]})]

    def encode_input(self, example: TextLabel, processor: Processor) -> PromptRow:
        ids, bare = (processor.prompt(self._turns(text)) for text in (example.text, ""))
        least = min(len(ids), len(bare))
        begin = next((t for t in range(least) if ids[t] != bare[t]), least)
        behind = next((t for t in range(least - begin) if ids[-1 - t] != bare[-1 - t]), least - begin)
        return PromptRow(input_ids=ids, labels=[IGNORE] * len(ids), text=(begin, len(ids) - behind))

    def _turns(self, text: str) -> tuple[Turn, ...]:
        asked = self.prompt.replace("{classes}", ", ".join(self.classes))
        return (Turn("user", asked.replace("{text}", text)),)

    def _words(self, label: str, processor: Processor) -> list[int]:
        """A class as the model writes it, with the stop token."""
        (rendered,) = processor.chat((*self._turns("-"), Turn("assistant", label)))
        return [token for token, said in zip(rendered.ids, rendered.assistant_mask) if said]

    def cut(self, row: PromptRow, max_length: int) -> tuple[Row, list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The end of the text goes, the question and the class stay.

        Raises:
            ValueError: the question alone is longer than the max_length.
        """
        ids, labels, (begin, end) = list(row["input_ids"]), list(row["labels"]), row["text"]
        least = len(ids) - (end - begin)
        if least >= max_length:
            raise ValueError(
                f"the question takes {least} tokens without a text, so a max_length of {max_length} has no room for it"
            )
        kept = end - (len(ids) - max_length)
        return Row(input_ids=ids[:kept] + ids[end:], labels=labels[:kept] + labels[end:]), ids[kept:end]

    # -- what is said -------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[dict[str, float]]:
        """The probability of every class, a segment; the question ends where the first label is."""
        options = [self._words(label, model.processor) for label in self.classes]
        prompts = []
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            learnt = (batch.labels[a:b] != IGNORE).nonzero()[:1, 0].tolist()
            prompts.append(
                model.attachment.prepend_virtual_tokens(batch.input_ids[a : a + learnt[0] + 1 if learnt else b].tolist())
            )
        said: list[dict[str, float]] = []
        many = max(1, TOGETHER // len(options))
        for at in range(0, len(prompts), many):
            scores = torch.tensor(score_options(model, prompts[at : at + many], options, PrefixCache(0, None)))
            said += [dict(zip(self.classes, row)) for row in scores.softmax(1).tolist()]
        return said

    def chosen(self, said: dict[str, float]) -> str:
        """The most probable class."""
        return max(said, key=lambda c: said[c])

    def to_record(self, said: dict[str, float]) -> dict[str, Any]:
        return {"probabilities": {name: round(p, 6) for name, p in said.items()}}

    def answer(self, said: dict[str, float]) -> str:
        return self.chosen(said)

    def metric_pair(self, said: dict[str, float], example: TextLabel) -> tuple[Any, Any]:
        return (self.chosen(said),), example.labels
