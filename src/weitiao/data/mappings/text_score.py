"""A text, or two, and numbers: {"text": ..., "score": 3.5}; also value, rating, 评分 ...; a list for several numbers.

Two texts: {"sentence1": ..., "sentence2": ..., "score": ...}, also text1/text2, text/other, 句子1/句子2.
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import TextScore
from weitiao.core.messages import Message
from weitiao.data.column_names import NUMERIC_LABELS, TEXT_PAIRS, TEXTS, VALUES, first_of, first_pair
from weitiao.data.columns import ColumnMapping, columns_of, number_of, text_of, texts_of, unpacked

EXAMPLE_TYPE = TextScore
OBJECTIVE = "regression"
TARGETS = ("text", "value", "other")
NOT_FOUND = Message("no columns of a text and a number found")
COLUMNS = "{text: ..., value: ...}, and other: ... for a second text"
INPUTS = ("text",)


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    text, other = _text_columns(first_values)
    numeric = [name for name, value in first_values.items() if _is_number(value)]
    value = first_of(VALUES, first_values) or (first_of(NUMERIC_LABELS, numeric) if other else None)
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

    return ColumnMapping(_described(text, other), TextScore, make, reads=columns_of(text, other))


def _text_columns(first_values: dict[str, Any]) -> tuple[str | None, str | None]:
    return first_pair(TEXT_PAIRS, first_values) or (first_of(TEXTS, first_values), None)


def _text_score(text: str, other: str | None, value: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TextScore:
        cell = unpacked(record.get(value))
        values = tuple(number_of(x, value) for x in (cell if isinstance(cell, (list, tuple)) else [cell]))
        if not values:
            raise InvalidValue("column {column!r} is an empty list: the row has no number", column=value)
        return TextScore(text_of(record, text), values, _other_text(record, other))

    description = f"{_described(text, other)} -> number: {value}"
    reads, texts = columns_of(text, other, value), texts_of(text=(text, other))
    return ColumnMapping(description, TextScore, make, reads=reads, texts=texts)


def _described(text: str, other: str | None) -> str:
    return f"{text} + {other}" if other else text


def _other_text(record: dict[str, Any], other: str | None) -> str:
    return text_of(record, other) if other else ""


def _is_number(value: Any) -> bool:
    try:
        number_of(value, "")
    except ValueError:
        return False
    return True
