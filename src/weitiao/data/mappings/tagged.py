"""A text whose words have tags.

tokens, tags      {"tokens": ["江", "泽", "民"], "tags": ["B-nr", "I-nr", "I-nr"]}    also words; ner_tags, labels
text, entities    {"text": "江泽民 ...", "entities": [{"start": 0, "end": 3, "label": "nr"}]}    also spans; [[0, 3, "nr"]]

Places are counted in characters, from 0; the end is behind the last one.
"""

from typing import Any

from weitiao.core.bio_tags import Entity, entities_to_tags
from weitiao.core.example import TokenTags
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, text_of
from weitiao.data.word_units import join_tokens, split_units

MAKES = TokenTags
PURPOSE = "token_classification"
TARGETS = ("tokens", "tags", "text", "entities")
LACKING = "no tokens with tags, and no text with entities found"
NEEDS = "{tokens: ..., tags: ...} or {text: ..., entities: ...}"
INPUTS = ("text",)

TOKENS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "ner", "labels")
SPANS, PERHAPS_SPANS = ("entities", "spans"), ("label", "labels")


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    found: list[ColumnMapping] = []
    lists = [name for name, value in seen.items() if isinstance(value, (list, tuple))]
    tokens, tags = first_of(TOKENS, lists), first_of(TAGS, lists)
    if tokens and tags:
        found.append(_tokens(tokens, tags))
    text = first_of(TEXTS, seen)
    spans = first_of(SPANS, lists) or next((x for x in PERHAPS_SPANS if x in lists and _is_span(*seen[x][:1])), None)
    if text and spans:
        found.append(_spans(text, spans))
    return found


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    if {"tokens", "tags"} <= columns.keys():
        return _tokens(columns["tokens"], columns["tags"])
    return _spans(columns["text"], columns["entities"]) if {"text", "entities"} <= columns.keys() else None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """Tokens, or else a text, whose tags nobody knows; the units of a text are found here."""
    lists = [name for name, value in seen.items() if isinstance(value, (list, tuple))]
    tokens = first_of((columns["tokens"],) if "tokens" in columns else () if "text" in columns else TOKENS, lists)
    text = first_of((columns["text"],) if "text" in columns else TEXTS, seen)
    if not tokens and not text:
        return None

    def make(record: dict[str, Any]) -> TokenTags:
        if tokens and (not text or isinstance(record.get(tokens), (list, tuple))):
            return TokenTags(*_words(record, tokens), ())
        return _untagged(text_of(record, text or ""))

    return ColumnMapping(" or ".join(x for x in (tokens, text) if x) + " is read", TokenTags, make)


def _untagged(text: str) -> TokenTags:
    return TokenTags(text, tuple(split_units(text)), ())


def _tokens(tokens: str, tags: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TokenTags:
        text, units = _words(record, tokens)
        given = record.get(tags)
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"column {tags!r} is missing or not a list of tags")
        if len(given) != len(units):
            raise ValueError(f"{len(units)} tokens ({tokens}) and {len(given)} tags ({tags})")
        return TokenTags(text, units, tuple(str(x).strip() for x in given))

    return ColumnMapping(f"{tokens} -> tags: {tags}", TokenTags, make)


def _words(record: dict[str, Any], key: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    tokens = record.get(key)
    if not isinstance(tokens, (list, tuple)):
        raise ValueError(f"column {key!r} is missing or not a list of tokens")
    odd = next((i for i, x in enumerate(tokens) if not isinstance(x, str) or not x), None)
    if odd is not None:
        raise ValueError(f"{key}[{odd}] is {tokens[odd]!r}, not a word")
    if not any(x.strip() for x in tokens):
        raise ValueError("the text is empty")
    text, places = join_tokens(tokens)
    return text, tuple(places)


def _spans(text: str, spans: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TokenTags:
        words, given = text_of(record, text), record.get(spans)
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"column {spans!r} is missing or not a list of entities")
        units = split_units(words)
        encode_with_offsets = sorted(_placed(x, i, spans, words) for i, x in enumerate(given))
        for (start, end, kind), (after, _, other) in zip(encode_with_offsets, encode_with_offsets[1:]):
            if after < end:
                raise ValueError(f"the entities {words[start:end]!r} ({kind}) and the {other} at {after} overlap")
        return TokenTags(
            words,
            tuple(units),
            tuple(entities_to_tags((_by_units(x, units, words) for x in encode_with_offsets), len(units))),
        )

    return ColumnMapping(f"{text} -> tags: {spans}", TokenTags, make)


def _is_span(given: Any = None) -> bool:
    if isinstance(given, dict):
        return {"start", "end", "label"} <= given.keys()
    return isinstance(given, (list, tuple)) and len(given) == 3


def _placed(given: Any, i: int, column: str, text: str) -> tuple[int, int, str]:
    """(start, end, kind) of one entity."""
    if not _is_span(given):
        raise ValueError(f"{column}[{i}] is neither {{start, end, label}} nor [start, end, label]")
    start, end, kind = (given[x] for x in ("start", "end", "label")) if isinstance(given, dict) else given
    if (
        not all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
        or kind != kind
        or not str(kind or "").strip()
    ):
        raise ValueError(f"{column}[{i}] is {start!r} to {end!r}, {kind!r}: two whole numbers and a kind are wanted")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"{column}[{i}] is {start} to {end}: not in the text of {len(text)} characters")
    return start, end, str(kind).strip()


def _by_units(encode_with_offsets: tuple[int, int, str], units: list[tuple[int, int]], text: str) -> Entity:
    """The same by units."""
    start, end, kind = encode_with_offsets
    mine = [u for u, (a, b) in enumerate(units) if a < end and b > start]
    if not mine:
        raise ValueError(f"the entity at {start} to {end} ({kind}) holds no word")
    first, last = mine[0], mine[-1]
    for edge, (a, b) in ((start, units[first]), (end, units[last])):
        if a < edge < b:
            raise ValueError(
                f"the entity {text[start:end]!r} ({kind}) at {start} has its edge inside the word {text[a:b]!r}"
            )
    return first, last + 1, kind
