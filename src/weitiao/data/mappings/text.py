"""Plain text: {"text": ...}, also content, document."""

from typing import Any

from weitiao.core.example import Text
from weitiao.data.columns import ColumnMapping, first_of, string

MAKES = Text
PURPOSE = "causal_lm"
TARGETS = ("text",)
LACKING = "plain text is wanted (a column 'text')"
NEEDS = "{text: ...}"
INPUTS = ("text",)


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    key = first_of(("text", "content", "document"), seen)
    return [_text(key, key)] if key else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    key = columns.get("text")
    return _text(key, f"{key} (as given)") if key else None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """Text is its own answer."""
    return from_columns(columns) if columns.get("text") in seen else next(iter(infer_columns(seen)), None)


def _text(key: str, words: str) -> ColumnMapping:
    return ColumnMapping(words, Text, lambda record: Text(string(record, key)))
