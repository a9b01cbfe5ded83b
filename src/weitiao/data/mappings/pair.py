"""A query and a matching document, or two texts and their similarity.

{"query": ..., "document": ...}                 also anchor, question, text, sentence1; positive, answer, other, sentence2
{"query": ..., "document": ..., "negative": ...}   or "negatives": [...], which do not match the query
{"sentence1": ..., "sentence2": ..., "score": 0.8}
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import Pair
from weitiao.core.messages import Message
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, number_of, text_of

EXAMPLE_TYPE = Pair
OBJECTIVE = "embedding"
TARGETS = ("query", "document", "negative", "score")
NOT_FOUND = Message("no columns of a query and a matching document found")
COLUMNS = "{query: ..., document: ...}, optionally with negative or score"
INPUTS = ("query",)

QUERIES = ("query", "anchor", "question", "sentence1", "text1", "text")
DOCUMENTS = ("document", "positive", "answer", "sentence2", "text2", "other")
NEGATIVES = ("negatives", "negative")
SCORES = ("score", "similarity", "likeness")


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    query, document = first_of(QUERIES, first_values), first_of(DOCUMENTS, first_values)
    if not query or not document:
        return []
    return [_pair(query, document, first_of(NEGATIVES, first_values), first_of(SCORES, first_values))]


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if not {"query", "document"} <= columns.keys():
        return None
    return _pair(columns["query"], columns["document"], columns.get("negative"), columns.get("score"))


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A text to embed; with a document, a pair to compare."""
    requested = columns.get("text") or columns.get("query")
    key = first_of((requested,) if requested else (*QUERIES, *TEXTS), first_values)
    if not key:
        return None
    document = columns.get("document") or first_of(DOCUMENTS, first_values)
    other = document if document in first_values and document != key else None

    def make(record: dict[str, Any]) -> Pair:
        return Pair(text_of(record, key), str(record.get(other) or "") if other else "")

    return ColumnMapping(f"{key} <-> {other}" if other else key, Pair, make)


def _pair(query: str, document: str, negative: str | None, score: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> Pair:
        others = record.get(negative) if negative else None
        if others is not None and not isinstance(others, (str, list)):
            raise InvalidValue(
                "column {column!r} is {type}, not a text or a list of texts", column=negative, type=type(others).__name__
            )
        negatives = (others,) if isinstance(others, str) else tuple(others or ())
        if any(not isinstance(x, str) or not x.strip() for x in negatives):
            raise InvalidValue("column {column!r} has an entry that is empty or not text", column=negative)
        similarity = number_of(record[score], score) if score and record.get(score) is not None else None
        return Pair(text_of(record, query), text_of(record, document), negatives, similarity)

    optional = "".join(f", {name}: {key}" for name, key in (("negative", negative), ("score", score)) if key)
    return ColumnMapping(f"{query} <-> {document}{optional}", Pair, make)
