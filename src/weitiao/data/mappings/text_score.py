"""A text, or two, and numbers: {"text": ..., "score": 3.5}; also value, rating ...; a list for several numbers.

Two texts: {"sentence1": ..., "sentence2": ..., "score": ...}, also text1/text2, text/other.
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import TextScore
from weitiao.core.messages import Message
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, number_of, text_of

EXAMPLE_TYPE = TextScore
OBJECTIVE = "regression"
TARGETS = ("text", "value", "other")
NOT_FOUND = Message("no columns of a text and a number found")
COLUMNS = "{text: ..., value: ...}, and other: ... for a second text"
INPUTS = ("text",)

VALUES = ("value", "values", "score", "scores", "rating", "stars", "similarity")
PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("text", "other"))


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    value, (text, other) = first_of(VALUES, first_values), _text_columns(first_values)
    return [_text_score(text, other, value)] if text and value else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if not {"text", "value"} <= columns.keys():
        return None
    return _text_score(columns["text"], columns.get("other"), columns["value"])


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A text, or two, without a number."""
    text, other = (columns["text"], columns.get("other")) if "text" in columns else _text_columns(first_values)
    if text not in first_values or (other is not None and other not in first_values):
        return None

    def make(record: dict[str, Any]) -> TextScore:
        return TextScore(text_of(record, text), (), _other_text(record, other))

    return ColumnMapping(_described(text, other), TextScore, make)


def _text_columns(first_values: dict[str, Any]) -> tuple[str | None, str | None]:
    pair = next((pair for pair in PAIRS if set(pair) <= first_values.keys()), None)
    return pair or (first_of(TEXTS, first_values), None)


def _text_score(text: str, other: str | None, value: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TextScore:
        written = record.get(value)
        values = tuple(number_of(x, value) for x in (written if isinstance(written, list) else [written]))
        if not values:
            raise InvalidValue("column {column!r} is an empty list: the row has no number", column=value)
        return TextScore(text_of(record, text), values, _other_text(record, other))

    return ColumnMapping(f"{_described(text, other)} -> number: {value}", TextScore, make)


def _described(text: str, other: str | None) -> str:
    return f"{text} + {other}" if other else text


def _other_text(record: dict[str, Any], other: str | None) -> str:
    return text_of(record, other) if other else ""
