"""A question, a context and the answers in it.

SQuAD, as datasets have it   {"question", "context", "answers": {"text": ["Goya"], "answer_start": [18]}}
a list                       {"question", "context", "answers": [{"text": "Goya", "start": 18}]}
one answer                   {"question", "context", "answer": "Goya"}, once in the context; or with "start": 18

A context without an answer: "answers": [] (or empty lists), or "answer": null.
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import ExtractiveQA
from weitiao.core.messages import Message
from weitiao.data.columns import ColumnMapping, first_of, string

EXAMPLE_TYPE = ExtractiveQA
OBJECTIVE = "question_answering"
TARGETS = ("question", "context", "answers", "answer", "start")
NOT_FOUND = Message("no columns of a question, a context and its answers found")
COLUMNS = "{question: ..., context: ..., answers: ...} or {question: ..., context: ..., answer: ...}"
INPUTS = ("question", "context")

CONTEXTS = ("context", "passage", "paragraph")
STARTS = ("start", "answer_start")
Answer = tuple[int, str]  # its start in the context, in characters, and its text


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    context = first_of(CONTEXTS, first_values)
    if "question" not in first_values or context is None:
        return []
    if "answers" in first_values:
        return [_answers("question", context, "answers")]
    return [_one_answer("question", context, "answer", first_of(STARTS, first_values))] if "answer" in first_values else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if {"question", "context", "answers"} <= columns.keys():
        return _answers(columns["question"], columns["context"], columns["answers"])
    if {"question", "context", "answer"} <= columns.keys():
        return _one_answer(columns["question"], columns["context"], columns["answer"], columns.get("start"))
    return None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A question and a context without answers."""
    question = columns.get("question", "question")
    context = columns.get("context") or first_of(CONTEXTS, first_values)
    if question not in first_values or context is None or context not in first_values:
        return None

    def make(record: dict[str, Any]) -> ExtractiveQA:
        return ExtractiveQA(*_question(record, question, context), ())

    return ColumnMapping(f"{question} + {context}", ExtractiveQA, make)


def _answers(question: str, context: str, answers: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        query, text = _question(record, question, context)
        return ExtractiveQA(query, text, _all_answers(record, answers, text))

    return ColumnMapping(f"{question} + {context} -> {answers}", ExtractiveQA, make)


def _one_answer(question: str, context: str, answer: str, start: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        query, text = _question(record, question, context)
        if answer not in record:
            raise InvalidValue("column {column!r} is missing; null means that the context has no answer", column=answer)
        if record[answer] is None:
            return ExtractiveQA(query, text, ())
        position = record.get(start) if start else None
        return ExtractiveQA(query, text, (_answer(text, string(record, answer), position),))

    optional = f", start: {start}" if start else ""
    return ColumnMapping(f"{question} + {context} -> {answer}{optional}", ExtractiveQA, make)


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
    answers = record[key]
    if (
        isinstance(answers, dict)
        and isinstance(answers.get("text"), list)
        and isinstance(answers.get("answer_start"), list)
    ):
        texts, starts = answers["text"], answers["answer_start"]
        if len(texts) != len(starts):
            raise InvalidValue(
                "{column!r} has {num_texts} texts but {num_starts} starts",
                column=key,
                num_texts=len(texts),
                num_starts=len(starts),
            )
        answers = [{"text": a, "start": b} for a, b in zip(texts, starts)]
    if not isinstance(answers, list) or not all(isinstance(x, dict) for x in answers):
        raise InvalidValue(
            "{column!r} is neither {{text: [...], answer_start: [...]}} nor a list of {{text, start}}", column=key
        )
    checked = (_answer(text, x.get("text"), x.get("start", x.get("answer_start"))) for x in answers)
    return tuple(dict.fromkeys(checked))


def _answer(text: str, answer: Any, start: Any) -> Answer:
    """An answer whose position in the context is checked; without a start, its only occurrence.

    Raises:
        InvalidValue: the answer is not there, or without a start, occurs more than once.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise InvalidValue("the answer is empty; write answers: [] or answer: null if the context has no answer")
    occurrences = _occurrences(text, answer)
    positions = ", ".join(map(str, occurrences[:5]))
    if start is None:
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
    except (TypeError, ValueError):
        raise InvalidValue("the answer's start is {start!r}, not a number of characters", start=start) from None
    if position >= 0 and text[position : position + len(answer)] == answer:
        return position, answer
    if not occurrences:
        raise InvalidValue("the answer {answer!r} does not occur in the context", answer=answer[:60])
    raise InvalidValue(
        "the answer {answer!r} is not at character {position} of the context, but at {positions}",
        answer=answer[:60],
        position=position,
        positions=positions,
    )


def _occurrences(text: str, answer: str) -> list[int]:
    positions, position = [], text.find(answer)
    while position >= 0:
        positions.append(position)
        position = text.find(answer, position + 1)
    return positions
