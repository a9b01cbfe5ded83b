"""A question, a context and the answers in it.

SQuAD, as datasets have it   {"question", "context", "answers": {"text": ["Goya"], "answer_start": [18]}}
a list                       {"question", "context", "answers": [{"text": "Goya", "start": 18}]}
one answer                   {"question", "context", "answer": "Goya"}, once in the context; or with "start": 18

A context without an answer: "answers": [] (or empty lists), "answer": null, or "is_impossible": true.
"""

from collections.abc import Callable, Sequence
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import ExtractiveQA
from weitiao.core.messages import Message
from weitiao.data.character_offsets import unit_hint
from weitiao.data.column_names import ANSWER, ANSWERS, CONTEXTS, IMPOSSIBLE, QUESTIONS, STARTS, first_of
from weitiao.data.columns import ColumnMapping, columns_of, is_empty, string, texts_of, truth_of, unpacked

EXAMPLE_TYPE = ExtractiveQA
OBJECTIVE = "question_answering"
TARGETS = ("question", "context", "answers", "answer", "start")
NOT_FOUND = Message("no columns of a question, a context and its answers found")
COLUMNS = "{question: ..., context: ..., answers: ...} or {question: ..., context: ..., answer: ...}"
INPUTS = ("question", "context")

Answer = tuple[int, str]  # its start in the context, in characters, and its text


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    question, context = first_of(QUESTIONS, first_values), first_of(CONTEXTS, first_values)
    if question is None or context is None:
        return []
    impossible = first_of(IMPOSSIBLE, first_values) or IMPOSSIBLE[0]  # it may be missing from the first rows
    if answers := first_of(ANSWERS, first_values):
        return [_answers(question, context, answers, impossible)]
    answer = first_of(ANSWER, first_values)
    return [_one_answer(question, context, answer, first_of(STARTS, first_values), impossible)] if answer else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if {"question", "context", "answers"} <= columns.keys():
        return _answers(columns["question"], columns["context"], columns["answers"], IMPOSSIBLE[0])
    if {"question", "context", "answer"} <= columns.keys():
        one = columns["answer"]
        return _one_answer(columns["question"], columns["context"], one, columns.get("start"), IMPOSSIBLE[0])
    return None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A question and a context without answers."""
    question = columns.get("question") or first_of(QUESTIONS, first_values)
    context = columns.get("context") or first_of(CONTEXTS, first_values)
    if question is None or context is None or not {question, context} <= first_values.keys():
        return None

    def make(record: dict[str, Any]) -> ExtractiveQA:
        return ExtractiveQA(*_question(record, question, context), ())

    return ColumnMapping(f"{question} + {context}", ExtractiveQA, make, reads=(question, context))


def _answers(question: str, context: str, answers: str, impossible: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        query, text = _question(record, question, context)
        return ExtractiveQA(query, text, _possible(record, impossible, _all_answers(record, answers, text)))

    reads = columns_of(question, context, answers, impossible)
    return _with_answers(f"{question} + {context} -> {answers}", make, reads, (question, context))


def _one_answer(question: str, context: str, answer: str, start: str | None, impossible: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        query, text = _question(record, question, context)
        if answer not in record:
            raise InvalidValue("column {column!r} is missing; null means that the context has no answer", column=answer)
        cell = record[answer]
        marked = truth_of(record.get(impossible)) is True
        if cell is None or cell != cell or (marked and is_empty(cell)):
            return ExtractiveQA(query, text, _possible(record, impossible, ()))
        position = record.get(start) if start else None
        return ExtractiveQA(query, text, _possible(record, impossible, _answer_cell(record, answer, text, position)))

    optional = f", start: {start}" if start else ""
    reads = columns_of(question, context, answer, start, impossible)
    return _with_answers(f"{question} + {context} -> {answer}{optional}", make, reads, (question, context))


def _with_answers(
    description: str, make: Callable[[dict[str, Any]], ExtractiveQA], reads: tuple[str, ...], texts: Sequence[str]
) -> ColumnMapping:
    return ColumnMapping(description, ExtractiveQA, make, reads=reads, texts=texts_of(text=texts), has_offsets=True)


def _answer_cell(record: dict[str, Any], key: str, text: str, position: Any) -> tuple[Answer, ...]:
    """The answer of a row: a text, or {"text": ..., "start": ...}."""
    cell = unpacked(record[key])
    if isinstance(cell, dict):
        return _all_answers({key: [cell]}, key, text)
    return (_answer(text, string(record, key), position[0] if isinstance(position, list) and position else position),)


def _possible(record: dict[str, Any], key: str, answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """The answers, if they agree with `is_impossible`."""
    impossible = truth_of(record.get(key))
    if impossible is not None and impossible == bool(answers):
        raise InvalidValue(
            "{column!r} is {value}, but the row has {n} answers", column=key, value=str(record.get(key)), n=len(answers)
        )
    return answers


def _question(record: dict[str, Any], question: str, context: str) -> tuple[str, str]:
    """(question, context) of a row."""
    query, text = string(record, question), string(record, context)
    for key, content in ((question, query), (context, text)):
        if not content.strip():
            raise InvalidValue("column {column!r} is empty", column=key)
    return query.strip(), text


def _all_answers(record: dict[str, Any], key: str, text: str) -> tuple[Answer, ...]:
    if key not in record:
        raise InvalidValue("column {column!r} is missing; [] means that the context has no answer", column=key)
    answers = unpacked(record[key])
    if isinstance(answers, dict) and "text" in answers:
        answers = _by_answer(answers, key)
    if isinstance(answers, list):
        answers = [{"text": x} if isinstance(x, str) else x for x in answers]
    if not isinstance(answers, list) or not all(isinstance(x, dict) for x in answers):
        raise InvalidValue(
            "{column!r} is neither {{text: [...], answer_start: [...]}} nor a list of {{text, start}}", column=key
        )
    checked = (_answer(text, x.get("text"), x.get("start", x.get("answer_start"))) for x in answers)
    return tuple(dict.fromkeys(checked))


def _by_answer(answers: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """{"text": [...], "answer_start": [...]} as a list of {"text", "start"}; both may be single values."""
    texts, starts = answers["text"], answers.get("answer_start", answers.get("start"))
    if not isinstance(texts, list):
        return [{"text": texts, "start": starts[0] if isinstance(starts, list) and starts else starts}]
    starts = [None] * len(texts) if starts is None else starts
    if not isinstance(starts, list) or len(texts) != len(starts):
        raise InvalidValue(
            "{column!r} has {num_texts} texts but {num_starts} starts",
            column=key,
            num_texts=len(texts),
            num_starts=len(starts) if isinstance(starts, list) else 1,
        )
    return [{"text": a, "start": b} for a, b in zip(texts, starts)]


def _answer(text: str, answer: Any, start: Any) -> Answer:
    """An answer whose position in the context is checked; without a start, its only occurrence.

    Raises:
        InvalidValue: the answer is not there, or without a start, occurs more than once.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise InvalidValue("the answer is empty; write answers: [] or answer: null if the context has no answer")
    occurrences = _occurrences(text, answer)
    positions = ", ".join(map(str, occurrences[:5]))
    if is_empty(start):
        if not occurrences:
            raise InvalidValue("the answer {answer!r} does not occur in the context", answer=answer[:60])
        if len(occurrences) > 1:
            raise InvalidValue(
                "the answer {answer!r} occurs {n} times in the context (at {positions}); choose one with start",
                answer=answer[:60],
                n=len(occurrences),
                positions=positions,
            )
        return occurrences[0], answer
    try:
        position = int(start)
    except (TypeError, ValueError, OverflowError):
        raise InvalidValue("the answer's start is {start!r}, not a number of characters", start=start) from None
    if position >= 0 and text[position : position + len(answer)] == answer:
        return position, answer
    if not occurrences:
        raise InvalidValue("the answer {answer!r} does not occur in the context", answer=answer[:60])
    raise InvalidValue(
        "the answer {answer!r} is not at character {position} of the context, but at {positions}{hint}",
        answer=answer[:60],
        position=position,
        positions=positions,
        hint=unit_hint(text, position, position + len(answer), answer),
    )


def _occurrences(text: str, answer: str) -> list[int]:
    positions, position = [], text.find(answer)
    while position >= 0:
        positions.append(position)
        position = text.find(answer, position + 1)
    return positions
