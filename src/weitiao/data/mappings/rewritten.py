"""A text and what is to be made of it.

{"source": ..., "target": ...}      also input, document, article, text; output, summary, highlights, translation
"""

from typing import Any

from weitiao.core.example import Rewritten
from weitiao.data.columns import TEXTS, Mapping, first_of, text_of

MAKES = Rewritten
PURPOSE = "seq2seq"
TARGETS = ("source", "target")
LACKING = "no text and what is to be made of it found"
NEEDS = "{source: ..., target: ...}"

FIRST = ("source", "input", "document", "article", "text", "src")
SECOND = ("target", "output", "summary", "highlights", "translation", "tgt")


def recognise(seen: dict[str, Any]) -> list[Mapping]:
    """Mappings that fit, the best first."""
    source, target = first_of(FIRST, seen), first_of(SECOND, seen)
    return [_rewritten(source, target)] if source and target else []


def as_given(columns: dict[str, str]) -> Mapping | None:
    """The mapping that the user describes."""
    return _rewritten(columns["source"], columns["target"]) if {"source", "target"} <= columns.keys() else None


def unanswered(columns: dict[str, str], seen: dict[str, Any]) -> Mapping | None:
    """A text alone, of which something is to be made."""
    asked = columns.get("text") or columns.get("source")
    key = first_of((*FIRST, *TEXTS), seen) if asked is None else first_of((asked,), seen)
    return Mapping(f"{key} is read", Rewritten, lambda record: Rewritten(text_of(record, key), "")) if key else None


def _rewritten(source: str, target: str) -> Mapping:
    def make(record: dict[str, Any]) -> Rewritten:
        return Rewritten(text_of(record, source), text_of(record, target))

    return Mapping(f"{source} -> {target}", Rewritten, make)
