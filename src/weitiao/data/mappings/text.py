"""Plain text: {"text": ...}, also content, document, 文本, 内容 ..."""

from typing import Any

from weitiao.core.example import Text
from weitiao.core.messages import Message
from weitiao.data.column_names import PLAIN_TEXTS, first_of
from weitiao.data.columns import ColumnMapping, string, texts_of

EXAMPLE_TYPE = Text
OBJECTIVE = "causal_lm"
TARGETS = ("text",)
NOT_FOUND = Message("no column of plain text found")
COLUMNS = "{text: ...}"
INPUTS = ("text",)


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    key = first_of(PLAIN_TEXTS, first_values)
    return [_text(key)] if key else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    key = columns.get("text")
    return _text(key) if key else None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """Plain text needs no answer."""
    return from_columns(columns) if columns.get("text") in first_values else next(iter(infer_columns(first_values)), None)


def _text(key: str) -> ColumnMapping:
    return ColumnMapping(key, Text, lambda record: Text(string(record, key)), reads=(key,), texts=texts_of(text=(key,)))
