"""Classification by a generative model: the class is its answer, and no head is needed.

Radford et al. 2019 (GPT-2), sec. 3; Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv 2005.14165, sec. 2.4:

    training      loss = - sum over the tokens of the class and the stop token of log p(x_t | the question, x_<t)
    prediction    p(c) = softmax over classes of log p(the tokens of c, stop | the question)

    <user> Won a prize! Which is it: ham, spam? ... <assistant> spam <stop>
                         context                                target

The stop token counts, so a class that is a prefix of another one has no advantage. Training is that of `sft`; the
difference is that only classes can be answered, with their probabilities.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Row, take_tokens
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import TextLabel, Turn
from weitiao.core.messages import Message
from weitiao.core.objective import LikelihoodObjective
from weitiao.core.option_scores import score_options
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import CLASS_METRICS, PROBABILITY_METRICS, Traits

MAX_CLASSES = 100  # that fit into a question


class PromptRow(AnnotatedRow, total=False):
    """A row with a text inside a question."""

    text: tuple[int, int]
    """The positions of the text, start <= ... < end."""


class GenerativeClassification(LikelihoodObjective):
    """Predict the class of a text with a generative model, whose answer is one of the classes."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextLabel,
        is_nll=True,
        has_predict=True,
        has_log_probs=True,
        overlong="truncate",
        overlong_reason=Message("the beginning of a text usually suffices to classify it; the question stays whole"),
        metrics=("loss", "accuracy", "f1"),
        optional_metrics=(*CLASS_METRICS, *PROBABILITY_METRICS),
    )

    prompt: str = Field(default="{text}\n\nWhich is it: {classes}? Answer with one of them and nothing else.")
    """The question; {text} is the text, {classes} are the classes."""
    classes: tuple[str, ...] = ()
    """The classes, in the order in which the question lists them; default: those of the training data."""

    @field_validator("prompt")
    @classmethod
    def _has_one_text(cls, prompt: str) -> str:
        if prompt.count("{text}") != 1:
            raise InvalidValue("write {text} once, where the text goes, and {classes} where the classes are listed")
        return prompt

    def fit(self, examples: Sequence[TextLabel]) -> "GenerativeClassification":
        """The objective with its classes."""
        classes = self.classes or tuple(sorted(Counter(label for x in examples for label in x.labels)))
        if len(classes) < 2:
            raise DataError(
                "data: at least two classes are needed; there are: {classes}", classes=", ".join(classes) or "none"
            )
        if len(classes) > MAX_CLASSES:
            raise DataError(
                "data: {num_classes:,} classes, but a question lists at most {max_classes}. Use objective: classification, "
                "or name the right column with columns: {{text: ..., label: ...}}",
                num_classes=len(classes),
                max_classes=MAX_CLASSES,
            )
        return self.model_copy(update={"classes": classes})

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TextLabel, processor: Processor) -> list[Row]:
        """The question and the class; nothing follows the last supervised token."""
        if len(example.labels) != 1:
            raise InvalidValue(
                "the row has {num} classes, but one is expected; objective: classification allows several",
                num=len(example.labels),
            )
        if example.labels[0] not in self.classes:
            raise InvalidValue(
                "the class {name!r} is not one of the training classes: {classes}",
                name=example.labels[0],
                classes=", ".join(self.classes)[:200],
            )
        row, answer = self.encode_input(example, processor), self._answer_ids(example.labels[0], processor)
        prompt = list(row["input_ids"])
        labels = [*[IGNORE] * (len(prompt) - 1), *answer]
        return [PromptRow(**{**row, "input_ids": [*prompt, *answer[:-1]], "labels": labels})]

    def encode_input(self, example: TextLabel, processor: Processor) -> PromptRow:
        ids, without_text = (processor.prompt(self._prompt_turns(text)) for text in (example.text, ""))
        shortest = min(len(ids), len(without_text))
        start = next((t for t in range(shortest) if ids[t] != without_text[t]), shortest)
        rest = shortest - start
        after = next((t for t in range(rest) if ids[-1 - t] != without_text[-1 - t]), rest)
        return PromptRow(input_ids=ids, labels=[IGNORE] * len(ids), text=(start, len(ids) - after))

    def _prompt_turns(self, text: str) -> tuple[Turn, ...]:
        question = self.prompt.replace("{classes}", ", ".join(self.classes))
        return (Turn("user", question.replace("{text}", text)),)

    def _answer_ids(self, label: str, processor: Processor) -> list[int]:
        """A class as the model generates it, with the stop token."""
        (rendered,) = processor.chat((*self._prompt_turns("-"), Turn("assistant", label)))
        return [token for token, supervised in zip(rendered.ids, rendered.assistant_mask) if supervised]

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The end of the text goes; the question and the class stay.

        Raises:
            InvalidValue: the question alone is longer than max_length.
        """
        length, (start, end) = len(row["input_ids"]), row.get("text", (0, 0))
        num_question = length - (end - start)
        if num_question >= max_length:
            raise InvalidValue(
                "the question takes {num} tokens without a text, so max_length {max_length} leaves no room for one",
                num=num_question,
                max_length=max_length,
            )
        cut = end - (length - max_length)
        lost = [int(x) for x in row["input_ids"][cut:end]]
        return take_tokens(row, [*range(cut), *range(end, length)]), lost

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[dict[str, float]]:
        """The probability of every class, by segment; the question ends at the first label."""
        options = [self._answer_ids(label, model.processor) for label in self.classes]
        prompts: list[list[int]] = []
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            supervised = (batch.labels[a:b] != IGNORE).nonzero()[:1, 0].tolist()
            end = a + supervised[0] + 1 if supervised else b
            prompts.append(batch.input_ids[a:end].tolist())
        scores = score_options(model, prompts, [options] * len(prompts))
        return [dict(zip(self.classes, torch.tensor(x.log_probs).softmax(0).tolist())) for x in scores]

    def to_record(self, prediction: dict[str, float]) -> dict[str, Any]:
        return {"probabilities": {name: round(p, 6) for name, p in prediction.items()}}

    def answer(self, prediction: dict[str, float]) -> str:
        """The most probable class."""
        return max(prediction, key=lambda c: prediction[c])

    def metric_pair(self, prediction: dict[str, float], example: TextLabel) -> tuple[Any, Any]:
        return (self.answer(prediction),), example.labels
