"""A question, a text and where its answer stands.

SQuAD, as datasets have it   {"question", "context", "answers": {"text": ["Goya"], "answer_start": [18]}}
a list                       {"question", "context", "answers": [{"text": "Goya", "start": 18}]}
one answer                   {"question", "context", "answer": "Goya"}, once in the text; or with "start": 18

No answer in the text: "answers": [] (or empty lists), or "answer": null.
"""

from typing import Any

from weitiao.core.example import ExtractiveQA
from weitiao.data.columns import ColumnMapping, first_of, string

MAKES = ExtractiveQA
PURPOSE = "question_answering"
TARGETS = ("question", "context", "answers", "answer", "start")
LACKING = "no question, text and answer found"
NEEDS = "{question: ..., context: ..., answers: ...} or {question: ..., context: ..., answer: ...}"
INPUTS = ("question", "context")

CONTEXTS = ("context", "passage", "paragraph")
STARTS = ("start", "answer_start")
Answers = tuple[tuple[int, str], ...]


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    context = first_of(CONTEXTS, seen)
    if "question" not in seen or context is None:
        return []
    if "answers" in seen:
        return [_several("question", context, "answers")]
    return [_one("question", context, "answer", first_of(STARTS, seen))] if "answer" in seen else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    if {"question", "context", "answers"} <= columns.keys():
        return _several(columns["question"], columns["context"], columns["answers"])
    if {"question", "context", "answer"} <= columns.keys():
        return _one(columns["question"], columns["context"], columns["answer"], columns.get("start"))
    return None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """A question and a text whose answer nobody knows."""
    question = columns.get("question", "question")
    context = columns.get("context") or first_of(CONTEXTS, seen)
    if question not in seen or context is None or context not in seen:
        return None
    words = f"{question} is asked of {context}"
    return ColumnMapping(words, ExtractiveQA, lambda record: ExtractiveQA(*_asked(record, question, context), ()))


def _several(question: str, context: str, answers: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        asked, text = _asked(record, question, context)
        return ExtractiveQA(asked, text, _listed(record, answers, text))

    return ColumnMapping(f"{question} -> {answers} in {context}", ExtractiveQA, make)


def _one(question: str, context: str, answer: str, start: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> ExtractiveQA:
        asked, text = _asked(record, question, context)
        if answer not in record:
            raise ValueError(f"column {answer!r} is missing; where the text holds no answer, write null")
        if record[answer] is None:
            return ExtractiveQA(asked, text, ())
        words = string(record, answer)
        begin = record.get(start) if start else None
        return ExtractiveQA(asked, text, (_checked(text, words, _only(text, words) if begin is None else begin),))

    where = f" at {start}" if start else ""
    return ColumnMapping(f"{question} -> {answer}{where} in {context}", ExtractiveQA, make)


def _asked(record: dict[str, Any], question: str, context: str) -> tuple[str, str]:
    asked, text = string(record, question), string(record, context)
    for key, words in ((question, asked), (context, text)):
        if not words.strip():
            raise ValueError(f"column {key!r} is empty")
    return asked.strip(), text


def _listed(record: dict[str, Any], key: str, text: str) -> Answers:
    if key not in record:
        raise ValueError(f"column {key!r} is missing; where the text holds no answer, write []")
    given = record[key]
    if isinstance(given, dict) and isinstance(given.get("text"), list) and isinstance(given.get("answer_start"), list):
        words, starts = given["text"], given["answer_start"]
        if len(words) != len(starts):
            raise ValueError(f"{key!r} has {len(words)} texts and {len(starts)} starts")
        given = [{"text": a, "start": b} for a, b in zip(words, starts)]
    if not isinstance(given, list) or not all(isinstance(x, dict) for x in given):
        raise ValueError(f"{key!r} is neither {{text: [...], answer_start: [...]}} nor a list of {{text, start}}")
    found = []
    for x in given:
        begin, words = x.get("start", x.get("answer_start")), x.get("text")
        found.append(_checked(text, words, _only(text, words) if begin is None else begin))
    return tuple(dict.fromkeys(found))


def _checked(text: str, words: Any, begin: Any) -> tuple[int, str]:
    """(begin, words), if these words do stand there.

    Raises:
        ValueError: they do not; what does is named.
    """
    if not isinstance(words, str) or not words.strip():
        raise ValueError("the answer is empty; where the text holds none, write answers: [] or answer: null")
    try:
        at = int(begin)
    except (TypeError, ValueError):
        raise ValueError(f"the answer's start is {begin!r}, not a number of characters") from None
    if at < 0 or text[at : at + len(words)] != words:
        there = f"there is {text[at : at + len(words)][:60]!r}" if 0 <= at < len(text) else f"the text has {len(text)}"
        places = _places(text, words)
        hint = f"; it stands at {', '.join(map(str, places[:5]))}" if places else "; it stands nowhere in the text"
        raise ValueError(f"the answer {words[:60]!r} does not stand at character {at}: {there}{hint}")
    return at, words


def _only(text: str, words: Any) -> int:
    """Where an answer without a start stands.

    Raises:
        ValueError: nowhere, or at more than one place.
    """
    places = _places(text, words) if isinstance(words, str) and words.strip() else [0]
    if not places:
        raise ValueError(f"the answer {words[:60]!r} stands nowhere in the text")
    if len(places) > 1:
        where = ", ".join(map(str, places[:5]))
        raise ValueError(f"the answer {words[:60]!r} stands at {len(places)} places ({where}): say which with start")
    return places[0]


def _places(text: str, words: str) -> list[int]:
    found, at = [], text.find(words)
    while at >= 0:
        found.append(at)
        at = text.find(words, at + 1)
    return found
