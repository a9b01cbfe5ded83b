"""A text, or two, and numbers: {"text": ..., "score": 3.5}; also value, rating ...; a list for several numbers.

Two texts: {"sentence1": ..., "sentence2": ..., "score": ...}, also text1/text2, text/other.
"""

from typing import Any

from weitiao.core.example import TextScore
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, number_of, text_of

MAKES = TextScore
PURPOSE = "regression"
TARGETS = ("text", "value", "other")
LACKING = "no text with a number found"
NEEDS = "{text: ..., value: ...}, and other: ... for a second text"
INPUTS = ("text",)

VALUES = ("value", "values", "score", "scores", "rating", "stars", "similarity")
PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("text", "other"))


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    value, (text, other) = first_of(VALUES, seen), _texts(seen)
    return [_rated(text, other, value)] if text and value else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    if not {"text", "value"} <= columns.keys():
        return None
    return _rated(columns["text"], columns.get("other"), columns["value"])


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """A text, or two, whose number nobody knows."""
    text, other = (columns["text"], columns.get("other")) if "text" in columns else _texts(seen)
    if text not in seen or (other is not None and other not in seen):
        return None
    words = f"{text} and {other} are read" if other else f"{text} is read"
    return ColumnMapping(words, TextScore, lambda record: TextScore(text_of(record, text), (), _other(record, other)))


def _texts(seen: dict[str, Any]) -> tuple[str | None, str | None]:
    pair = next((pair for pair in PAIRS if set(pair) <= seen.keys()), None)
    return pair or (first_of(TEXTS, seen), None)


def _rated(text: str, other: str | None, value: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TextScore:
        given = record.get(value)
        values = tuple(number_of(x, value) for x in (given if isinstance(given, list) else [given]))
        if not values:
            raise ValueError(f"column {value!r} is an empty list: the row has no number")
        return TextScore(text_of(record, text), values, _other(record, other))

    return ColumnMapping(f"{text}{f' and {other}' if other else ''} -> number: {value}", TextScore, make)


def _other(record: dict[str, Any], other: str | None) -> str:
    return text_of(record, other) if other else ""
