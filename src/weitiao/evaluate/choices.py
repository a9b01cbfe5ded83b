"""The most probable of a closed set of answers; and the losses of the rows whose answer is one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitiao.core.batch import IGNORE, Row
from weitiao.core.example import Chat, Turn
from weitiao.core.option_scores import OptionScores, score_options
from weitiao.core.trainable_model import TrainableModel


@dataclass(frozen=True)
class Choices:
    """What a model thinks of each answer to each prompt."""

    prompts: Sequence[Sequence[int]] = ()
    """Token ids."""
    options: Sequence[Sequence[int]] = ()
    """Token ids of each answer, stop token included."""
    scores: Sequence[OptionScores] = ()
    """Of each prompt."""
    _prompt_numbers: dict[tuple[int, ...], int] = field(default_factory=dict)
    _option_numbers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prompt_numbers.update((tuple(x), i) for i, x in enumerate(self.prompts))
        self._option_numbers.update((tuple(x), i) for i, x in enumerate(self.options))

    def loss(self, row: Row) -> tuple[float, float] | None:
        """(-log p, tokens) of a row that is one of the prompts and one of the answers, token for token; else None."""
        ids, labels = list(row["input_ids"]), list(row["labels"])
        length = next((t + 1 for t, label in enumerate(labels) if label != IGNORE), len(labels))
        answer = labels[length - 1 :]
        prompt, option = self._prompt_numbers.get(tuple(ids[:length])), self._option_numbers.get(tuple(answer))
        if prompt is None or option is None or ids[length:] != answer[:-1]:
            return None
        return -self.scores[prompt].log_probs[option], float(len(answer))


def choose(
    model: TrainableModel,
    chats: Sequence[Chat],
    answers: Sequence[str],
    progress: Callable[[Sequence[Any], str], Any] = lambda x, _: x,
) -> Choices:
    """For each conversation, the log-probability of each of the answers."""
    if not chats:
        return Choices()
    stop = model.processor.stop_ids[0]
    options = [answer_ids(model, chats[0].prompt, answer, stop) for answer in answers]
    prompts = [model.processor.prompt(x.prompt, x.tools) for x in chats]
    return Choices(prompts, options, score_options(model, prompts, [options] * len(prompts), progress))


def answer_ids(model: TrainableModel, prompt: Sequence[Turn], answer: str, stop: int) -> list[int]:
    """The token ids of an answer as the model would generate it, stop token included."""
    rendered = model.processor.chat((*prompt, Turn("assistant", answer)))[-1]
    begin = len(model.processor.prompt(prompt))
    ids = [token for token, supervised in zip(rendered.ids[begin:], rendered.assistant_mask[begin:]) if supervised]
    return ids if ids and ids[-1] in model.processor.stop_ids else [*ids, stop]
