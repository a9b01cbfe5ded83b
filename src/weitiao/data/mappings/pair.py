"""A query and a matching document, or two texts and their similarity.

{"query": ..., "document": ...}                 also anchor, question, text, sentence1; positive, answer, other, sentence2
{"query": ..., "document": ..., "negative": ...}   or "negatives": [...], or negative_1, negative_2 ...: they do not match
{"query": ..., "document": ..., "seen": [...]}  documents that are not ranked: what a user has had already
{"sentence1": ..., "sentence2": ..., "score": 0.8}   or "label": 1, is_duplicate ...: do they belong together?
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import Pair
from weitiao.core.messages import Message
from weitiao.data.column_names import (
    DOCUMENTS,
    NEGATIVES,
    PAIR_LABELS,
    QUERIES,
    SEEN,
    SIMILARITIES,
    TEXT_PAIRS,
    TEXTS,
    first_of,
    first_pair,
    is_one_of,
    plain_name,
)
from weitiao.data.columns import (
    ColumnMapping,
    columns_of,
    is_empty,
    number_of,
    optional_text,
    text_of,
    texts_of,
    truth_of,
    unpacked,
)
from weitiao.data.json_values import json_kind

EXAMPLE_TYPE = Pair
OBJECTIVE = "embedding"
TARGETS = ("query", "document", "negative", "score", "seen")
NOT_FOUND = Message("no columns of a query and a matching document found")
COLUMNS = "{query: ..., document: ...}, optionally with negative, score or seen"
INPUTS = ("query",)


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    query, document = first_of(QUERIES, first_values), first_of(DOCUMENTS, first_values)
    query, document = first_pair(TEXT_PAIRS, first_values) or (query, document)
    if not query or not document:
        return []
    negatives = _negatives_in(first_values)
    numeric = [name for name, value in first_values.items() if _is_score(value)]
    listed = [name for name, value in first_values.items() if isinstance(unpacked(value), list)]
    score = first_of(SIMILARITIES, first_values) or first_of(PAIR_LABELS, numeric)
    return [_pair(query, document, negatives, score, first_of(SEEN, listed))]


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if not {"query", "document"} <= columns.keys():
        return None
    negatives = columns_of(columns.get("negative"))
    return _pair(columns["query"], columns["document"], negatives, columns.get("score"), columns.get("seen"))


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A text to embed; with a document, a pair to compare."""
    requested = columns.get("text") or columns.get("query")
    key = first_of((requested,) if requested else (*QUERIES, *TEXTS), first_values)
    if not key:
        return None
    document = columns.get("document") or first_of(DOCUMENTS, first_values)
    other = document if document in first_values and document != key else None

    def make(record: dict[str, Any]) -> Pair:
        return Pair(text_of(record, key), optional_text(record, other))

    return ColumnMapping(f"{key} <-> {other}" if other else key, Pair, make, reads=columns_of(key, other))


def _negatives_in(first_values: dict[str, Any]) -> tuple[str, ...]:
    """The column of negatives, or every numbered one: negative_1, negative_2 ..."""
    if name := first_of(NEGATIVES, first_values):
        return (name,)
    return tuple(sorted((x for x in first_values if is_one_of(x, NEGATIVES)), key=plain_name))


def _is_score(value: Any) -> bool:
    try:
        _score(value, "")
    except ValueError:
        return False
    return True


def _score(value: Any, key: str) -> float:
    """A similarity; true and false, also as text, are 1 and 0."""
    truth = truth_of(value)
    return number_of(value, key) if truth is None else float(truth)


def _pair(query: str, document: str, negatives: tuple[str, ...], score: str | None, seen: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> Pair:
        numbered = negatives if len(negatives) == 1 else [x for x in negatives if not is_empty(record.get(x))]
        others = tuple(x for key in numbered for x in _listed_texts(record, key))
        similarity = _score(record[score], score) if score and not is_empty(record.get(score)) else None
        before = tuple(_listed_texts(record, seen)) if seen else ()
        return Pair(text_of(record, query), text_of(record, document), others, similarity, before)

    named = (("negative", ", ".join(negatives)), ("score", score), ("seen", seen))
    optional = "".join(f", {name}: {key}" for name, key in named if key)
    reads = columns_of(query, document, *negatives, score, seen)
    texts = texts_of(text=(query, document, *negatives, seen))
    return ColumnMapping(f"{query} <-> {document}{optional}", Pair, make, reads=reads, texts=texts)


def _listed_texts(record: dict[str, Any], key: str) -> list[str]:
    cell = unpacked(record.get(key))
    if cell is None or (isinstance(cell, float) and cell != cell):
        return []
    if not isinstance(cell, (str, list)):
        raise InvalidValue("column {column!r} is {type}, not a text or a list of texts", column=key, type=json_kind(cell))
    texts = [cell] if isinstance(cell, str) else cell
    if any(not isinstance(x, str) or not x.strip() for x in texts):
        raise InvalidValue("column {column!r} has an entry that is empty or not text", column=key)
    return texts
