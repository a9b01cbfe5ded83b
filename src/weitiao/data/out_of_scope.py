"""Questions out of scope, each with one fixed answer, beside conversations that are in scope.

A question of another set is used if it is no near-duplicate of a question in scope (Jaccard similarity of n-grams from 0.5
on: safer than the 0.8 of duplicates, since a refused question that is in scope does harm), none of its own kind came
before it, and it is not much longer than those in scope, which would tell them apart by length alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import Chat, Example, plain
from weitiao.data.duplicates.clusters import find_duplicates
from weitiao.data.duplicates.overlap import overlap
from weitiao.data.duplicates.signatures import sign

IN_SCOPE_SIMILARITY = 0.5
LONGEST = 2.0  # times the longest question in scope


@dataclass(frozen=True)
class OutOfScope:
    """What is written, and why questions were not used."""

    training: list[dict]
    """Rows: {"messages": [...], "refusal": the answer}."""
    held_out: list[dict]
    near_in_scope: int
    repeated: int
    too_long: int


def question_of(example: Example) -> str:
    """What is asked: of a conversation, what the user says last."""
    if isinstance(example, Chat):
        return next((x.content for x in reversed(example.prompt) if x.role == "user"), "")
    return example.input_text


def out_of_scope_rows(
    in_scope: Sequence[Chat], general: Sequence[str], answer: str, fraction: float, num_held_out: int, seed: int
) -> OutOfScope:
    """Rows whose answer is always the same, so many that they are `fraction` of all training rows.

    Args:
        general: questions to choose from.
        num_held_out: rows for evaluation, besides.

    Raises:
        DataError: there are too few questions, or the answer is one that is given in scope.
    """
    if any(plain(x.answer) == plain(answer) for x in in_scope):
        raise DataError("the answer {answer!r} is given to a question in scope already", answer=answer)
    wanted = round(fraction / (1 - fraction) * len(in_scope))
    inside = [question_of(x) for x in in_scope]
    questions = [x for x in dict.fromkeys(x.strip() for x in general) if x]
    limit = LONGEST * max(map(len, inside))
    short = [x for x in questions if len(x) <= limit]
    near = overlap(sign(inside, IN_SCOPE_SIMILARITY), sign(short, IN_SCOPE_SIMILARITY)) if short else {}
    outside = [x for i, x in enumerate(short) if i not in near]
    first = find_duplicates(outside).first if outside else np.zeros(0, int)
    usable = [x for i, x in enumerate(outside) if first[i] == i]
    if len(usable) < wanted + num_held_out:
        raise DataError(
            "{wanted:,} questions out of scope are needed ({fraction:.0%} of the training rows, and {held_out:,} held "
            "out), and {n:,} can be used. Name more with --general, or ask for less.",
            wanted=wanted + num_held_out,
            fraction=fraction,
            held_out=num_held_out,
            n=len(usable),
        )
    usable.sort(key=lambda x: hashlib.sha256(f"{seed} {plain(x)}".encode("utf-8", "surrogatepass")).hexdigest())
    systems = np.random.default_rng(seed).choice([x.system for x in in_scope], wanted + num_held_out)
    rows = [_row(x, answer, str(system)) for x, system in zip(usable, systems)]
    counts = len(near), len(outside) - len(usable), len(questions) - len(short)
    return OutOfScope(rows[num_held_out:], rows[:num_held_out], *counts)


def _row(question: str, answer: str, system: str) -> dict:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "refusal": answer}
