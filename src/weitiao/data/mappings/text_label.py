"""A text and its class: {"text": ..., "label": "spam"}; also sentence, review, 评论 ...; labels, category, 情感 ..."""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import TextLabel
from weitiao.core.messages import Message
from weitiao.data.column_names import LABELS, TEXTS, first_of
from weitiao.data.columns import ColumnMapping, class_name, text_of, texts_of, unpacked, without_commas

EXAMPLE_TYPE = TextLabel
OBJECTIVE = "classification"
TARGETS = ("text", "label")
NOT_FOUND = Message("no columns of a text and its class found")
COLUMNS = "{text: ..., label: ...}"
INPUTS = ("text",)


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    text, label = first_of(TEXTS, first_values), first_of(LABELS, first_values)
    return [_text_label(text, label)] if text and label else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    return _text_label(columns["text"], columns["label"]) if {"text", "label"} <= columns.keys() else None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A text without a class."""
    key = first_of((columns["text"],) if "text" in columns else TEXTS, first_values)
    return ColumnMapping(key, TextLabel, lambda record: TextLabel(text_of(record, key), ()), reads=(key,)) if key else None


def _text_label(text: str, label: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TextLabel:
        content, labels = text_of(record, text), unpacked(record.get(label))
        if isinstance(labels, (list, tuple)):
            return TextLabel(content, tuple(sorted({class_name(x, label) for x in labels})))
        if isinstance(labels, str) and without_commas(labels):
            raise InvalidValue("column {column!r} is {value!r}: write a list with commas", column=label, value=labels[:40])
        return TextLabel(content, (class_name(record.get(label), label),))

    return ColumnMapping(f"{text} -> class: {label}", TextLabel, make, reads=(text, label), texts=texts_of(text=(text,)))
