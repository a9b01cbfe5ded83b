"""`weitiao data out-of-scope` and `weitiao data wrong-answers`: rows made of the user's own and of a general set."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import Chat, Example, Pair, SourcedExample, content_hash
from weitiao.core.files import write_text
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.hard_negatives import Candidates, MiningSettings, mine_negatives, ngram_scores
from weitiao.data.out_of_scope import out_of_scope_rows, question_of
from weitiao.data.read import read_sources, refuse_to_overwrite

KINDS = ("sft", "classification", "embedding", "causal_lm")  # how a general set may be read, the best first
RIGHT, WRONG = "right", "wrong"
QUESTION = "Question: {question}\nAnswer: {answer}\nIs this answer right or wrong?"


def write_out_of_scope(
    sources: Sequence[Source],
    general: Sequence[Source],
    answer: str,
    out: Path,
    fraction: float = 0.08,
    num_held_out: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Write train.jsonl and test.jsonl: questions of the general set, all with the same answer.

    Args:
        sources: conversations in scope.
        fraction: of all training rows, those in scope included.

    Returns:
        Counts.

    Raises:
        DataError: the rows are no conversations, or too few questions can be used.
    """
    refuse_to_overwrite((out / "train.jsonl", out / "test.jsonl"), (*sources, *general))
    chats = [x for x in _examples(sources, ("sft",)) if isinstance(x, Chat)]
    questions = [question_of(x) for x in _examples(general, KINDS)]
    made = out_of_scope_rows(chats, questions, answer, fraction, num_held_out, seed)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "train.jsonl", made.training)
    _write(out / "test.jsonl", made.held_out)
    return {
        "in_scope": len(chats),
        "training": len(made.training),
        "held_out": len(made.held_out),
        "near_in_scope": made.near_in_scope,
        "repeated": made.repeated,
        "too_long": made.too_long,
    }


def write_wrong_answers(
    sources: Sequence[Source], out: Path, as_chat: bool = False, hard: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Write each question with its answer (right) and with another row's answer (wrong).

    A wrong answer is neither equal nor nearly equal to an answer of the question, or of a nearly equal question.

    Args:
        as_chat: conversations, for objective sft; else texts with labels, for classification.
        hard: of the answers that may be used, the one with most n-grams of the question; else a random one.

    Returns:
        Counts.

    Raises:
        DataError: the rows are no conversations, or all have the same answer.
    """
    refuse_to_overwrite([out], sources)
    chats = [x for x in _examples(sources, ("sft",)) if isinstance(x, Chat)]
    pairs = [Pair(question_of(x), x.answer) for x in chats]
    candidates = Candidates(pairs)
    nothing = np.zeros((len(candidates.queries), len(candidates.texts)), np.float32) if not hard else None
    scores = ngram_scores(candidates.queries, candidates.texts) if nothing is None else lambda block: nothing[block]
    mined = mine_negatives(candidates, scores, MiningSettings(1, relative_margin=None, seed=seed))
    rows: list[dict[str, Any]] = []
    for pair, negatives in zip(pairs, mined.negatives, strict=True):
        for answer, label in ((pair.other, RIGHT), *((x, WRONG) for x in negatives)):
            rows.append(_judged(pair.text, answer, label, as_chat))
    if mined.missing == len(pairs):
        raise DataError("data: no question has a wrong answer among those of the other rows.")
    _write(out, rows)
    return {"rows": len(rows), "questions": len(pairs), "without": mined.missing, "random": mined.random}


def _judged(question: str, answer: str, label: str, as_chat: bool) -> dict[str, Any]:
    group = content_hash(question)[:16]  # both rows of a question belong together
    if as_chat:
        text = QUESTION.format(question=question, answer=answer)
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        return {"messages": turns, "group": group}
    return {"text": f"{question}\n{answer}", "label": label, "group": group}


def _examples(sources: Sequence[Source], kinds: Iterable[str]) -> list[Example]:
    """The rows, read as the first kind that their columns fit.

    Raises:
        DataError: they fit none; told of the first.
    """
    failure: DataError | None = None
    for kind in kinds:
        try:
            rows: list[SourcedExample] = read_sources(sources, create(Objective, kind), 0.0).examples
            return [x.example for x in rows]
        except DataError as error:
            failure = failure or error
    assert failure is not None, "at least one kind is asked for"
    raise failure


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
