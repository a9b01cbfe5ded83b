"""A text and its class: {"text": ..., "label": "spam"}; also sentence, content, review ...; labels, category ..."""

import json
from typing import Any

from weitiao.core.example import TextLabel
from weitiao.data.columns import LABELS, TEXTS, ColumnMapping, first_of, name_of, text_of

MAKES = TextLabel
PURPOSE = "classification"
TARGETS = ("text", "label")
LACKING = "no text with a class found"
NEEDS = "{text: ..., label: ...}"
INPUTS = ("text",)


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    text, label = first_of(TEXTS, seen), first_of(LABELS, seen)
    return [_labelled(text, label)] if text and label else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    return _labelled(columns["text"], columns["label"]) if {"text", "label"} <= columns.keys() else None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """A text whose class nobody knows."""
    asked = columns.get("text")
    key = first_of(TEXTS, seen) if asked is None else first_of((asked,), seen)
    return ColumnMapping(f"{key} is read", TextLabel, lambda record: TextLabel(text_of(record, key), ())) if key else None


def _labelled(text: str, label: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TextLabel:
        words, given = text_of(record, text), _listed(record.get(label))
        if isinstance(given, list):
            return TextLabel(words, tuple(sorted({name_of(x, label) for x in given})))
        return TextLabel(words, (name_of(given, label),))

    return ColumnMapping(f"{text} -> class: {label}", TextLabel, make)


def _listed(given: Any) -> Any:
    """A list of classes as a cell of CSV holds it: ["a", "b"]."""
    if isinstance(given, str) and given.strip().startswith("[") and given.strip().endswith("]"):
        try:
            return json.loads(given)
        except ValueError:
            return given
    return given
