"""Two texts that belong together, or two and how alike they are.

{"query": ..., "document": ...}                 also anchor, question, text, sentence1; positive, answer, other, sentence2
{"query": ..., "document": ..., "negative": ...}   or "negatives": [...], which do not belong to the query
{"sentence1": ..., "sentence2": ..., "score": 0.8}
"""

from typing import Any

from weitiao.core.example import Pair
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, number_of, text_of

MAKES = Pair
PURPOSE = "embedding"
TARGETS = ("query", "document", "negative", "score")
LACKING = "no two texts that belong together found"
NEEDS = "{query: ..., document: ...}, and negative or score if there are any"
INPUTS = ("query",)

FIRST = ("query", "anchor", "question", "sentence1", "text1", "text")
SECOND = ("document", "positive", "answer", "sentence2", "text2", "other")
NEGATIVES = ("negatives", "negative")
SCORES = ("score", "similarity", "likeness")


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    query, document = first_of(FIRST, seen), first_of(SECOND, seen)
    return [_pair(query, document, first_of(NEGATIVES, seen), first_of(SCORES, seen))] if query and document else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    if not {"query", "document"} <= columns.keys():
        return None
    return _pair(columns["query"], columns["document"], columns.get("negative"), columns.get("score"))


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """A text, to be embedded; with a document beside it, to be held against that."""
    asked = columns.get("text") or columns.get("query")
    key = first_of((*FIRST, *TEXTS), seen) if asked is None else first_of((asked,), seen)
    beside = columns.get("document") or first_of(SECOND, seen)
    if not key:
        return None
    other = beside if beside in seen and beside != key else None

    def make(record: dict[str, Any]) -> Pair:
        return Pair(text_of(record, key), str(record.get(other) or "") if other else "")

    return ColumnMapping(f"{key} is read" + (f", and {other}" if other else ""), Pair, make)


def _pair(query: str, document: str, negative: str | None, score: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> Pair:
        others = record.get(negative) if negative else None
        if others is not None and not isinstance(others, (str, list)):
            raise ValueError(f"column {negative!r} is {type(others).__name__}, not a text or a list of texts")
        negatives = (others,) if isinstance(others, str) else tuple(others or ())
        if any(not isinstance(x, str) or not x.strip() for x in negatives):
            raise ValueError(f"column {negative!r} holds something that is no text")
        similarity = number_of(record[score], score) if score and record.get(score) is not None else None
        return Pair(text_of(record, query), text_of(record, document), negatives, similarity)

    more = "".join(f", {word}: {key}" for word, key in (("not", negative), ("alike", score)) if key)
    return ColumnMapping(f"{query} <-> {document}{more}", Pair, make)
