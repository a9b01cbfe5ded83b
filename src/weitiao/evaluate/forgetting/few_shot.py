"""The prompted base: what the base model can do with solved examples in its prompt. Fine-tuning must beat it.

    system, example 1, answer 1 ... example k, answer k, question         examples from the training rows

k is chosen on other training rows, which the base has not seen either (it is the smallest where the metric reads a column,
such as tests, which training rows need not have); then the base is measured on the held-out rows, the same as the
fine-tuned model, and the two are compared row by row.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Example
from weitiao.core.metric import COLUMNS, ColumnMetric, Metric, Reads
from weitiao.core.registry import create
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.choices import choose
from weitiao.evaluate.measure import generate_answers, with_column

NUMBERS = (3, 5, 8)  # of examples
TUNING_ROWS = 24  # that choose among them
MAX_CHARACTERS = 600  # of an example
SECONDS = 12.0  # of the short form; rows that it leaves no time for are not compared
CHUNK = 32  # rows between two looks at the clock
TEXTS: set[Reads] = {"choices", "answers", *COLUMNS}


@dataclass(frozen=True)
class FewShot:
    """Training rows for the base's prompt."""

    examples: tuple[Chat, ...]
    tuning: tuple[Chat, ...]
    """Rows that choose how many examples are shown."""


@dataclass(frozen=True)
class PromptedBase:
    """What the base did with the best number of examples."""

    metric: str
    k: int
    pairs: tuple[tuple[str, Any], ...]
    """Of the first held-out rows, as a metric reads them: (answer, reference), or (answer, value) where it judges by a
    column."""
    tried: dict[int, float]
    """Number of examples -> the score on the tuning rows; {}: they have no column to be judged by."""

    @property
    def score(self) -> Score:
        return create(Metric, self.metric).score(list(self.pairs))


def draw_examples(training: Sequence[Example], held_out: EvalSet, seed: int) -> FewShot | None:
    """Short conversations of one question with the held-out rows' system message; of a closed set of answers, all in turn.

    Returns:
        None where there are too few.
    """
    systems = Counter(x.system for x in held_out.examples if isinstance(x, Chat))
    if not systems:
        return None
    system = systems.most_common(1)[0][0]
    chats = [x for x in training if isinstance(x, Chat) and _is_usable(x, system)]
    random.Random(seed).shuffle(chats)
    counts: Counter[str] = Counter()
    rounds = []
    for x in chats:
        rounds.append(counts[x.answer])
        counts[x.answer] += 1
    in_turn = [x for _, x in sorted(zip(rounds, chats), key=lambda pair: pair[0])] if held_out.answers else chats
    examples = in_turn[: max(NUMBERS)]
    drawn = {id(x) for x in examples}
    tuning = [x for x in chats if id(x) not in drawn][:TUNING_ROWS]
    enough = len(examples) == max(NUMBERS) and len(tuning) == TUNING_ROWS
    return FewShot(tuple(examples), tuple(tuning)) if enough else None


def _is_usable(chat: Chat, system: str) -> bool:
    roles = [x.role for x in chat.turns if x.role != "system"]
    return roles == ["user", "assistant"] and chat.system == system and len(chat.full_text) <= MAX_CHARACTERS


def with_examples(chat: Chat, examples: Sequence[Chat]) -> Chat:
    """A conversation with solved ones before its question; they carry no loss."""
    opening = 1 if chat.system else 0
    solved = [replace(turn, supervised=False) for x in examples for turn in x.turns if turn.role != "system"]
    return replace(chat, turns=(*chat.turns[:opening], *solved, *chat.turns[opening:]))


def main_metric(names: Sequence[str], held_out: EvalSet) -> str | None:
    """The first metric of answers; None: all of them are of losses."""
    usable = TEXTS if held_out.answers else TEXTS - {"choices"}
    return next((x for x in names if "." not in x and create(Metric, x).reads in usable), None)


def prompt_base(
    base: TrainableModel,
    few_shot: FewShot,
    held_out: EvalSet,
    metric: str,
    limit: int | None,
    max_new_tokens: int,
    seconds: float | None = None,
) -> PromptedBase | None:
    """The base with the best number of examples, on the first held-out rows.

    Args:
        seconds: at most about this long; None: no limit.

    Returns:
        None where the examples do not fit into the model's context.
    """
    started, scorer = time.perf_counter(), create(Metric, metric)
    rows = [x for x in held_out.examples if isinstance(x, Chat)][:limit]

    def answers(chats: Sequence[Chat], k: int) -> list[tuple[str, Any]]:
        prompts = [with_examples(x, few_shot.examples[:k]) for x in chats]
        if scorer.reads == "choices":
            texts = [held_out.answers[x.best] for x in choose(base, prompts, held_out.answers).scores]
        else:
            texts = generate_answers(base, prompts, max_new_tokens)
        return [(text, x.answer) for text, x in zip(texts, chats)]

    def fits(k: int) -> bool:
        return _fits(base, [with_examples(x, few_shot.examples[:k]) for x in rows], max_new_tokens)

    fitting, tried = list(takewhile(fits, NUMBERS)), {}
    if not fitting:
        return None
    best = fitting[0]
    if not isinstance(scorer, ColumnMetric):
        tried = {k: scorer.score(answers(few_shot.tuning, k)).value for k in fitting}
        sign = -1 if scorer.score([("a", "a")]).higher_is_better is False else 1
        best = max(tried, key=lambda k: sign * tried[k])
    pairs: list[Any] = []
    for start in range(0, len(rows), CHUNK):
        pairs += answers(rows[start : start + CHUNK], best)
        if seconds is not None and time.perf_counter() - started > seconds:
            break
    if isinstance(scorer, ColumnMetric):
        pairs = scorer.judged(with_column([text for text, _ in pairs], held_out, scorer.reads))
    return PromptedBase(metric, best, tuple(pairs), tried)


def _fits(model: TrainableModel, chats: Sequence[Chat], room: int) -> bool:
    limit = model.architecture.max_length
    longest = max(chats, key=lambda x: len(x.full_text))
    return limit is None or len(model.processor.prompt(longest.prompt, longest.tools)) + room <= limit
