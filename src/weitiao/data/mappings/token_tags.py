"""A text whose units have tags.

tokens, tags      {"tokens": ["江", "泽", "民"], "tags": ["B-nr", "I-nr", "I-nr"]}    also words; ner_tags, labels
text, entities    {"text": "江泽民 ...", "entities": [{"start": 0, "end": 3, "label": "nr"}]}    also spans; [[0, 3, "nr"]]

Positions are counted in characters, from 0; the end is exclusive. Where an entity brings its words ("text", "value",
"word", "mention"), they are compared with the text at its position.
"""

from typing import Any

from weitiao.core.bio_tags import Entity, entities_to_tags
from weitiao.core.errors import InvalidValue
from weitiao.core.example import TokenTags
from weitiao.core.messages import Message
from weitiao.data.character_offsets import END_INSIDE, UTF16, offset_hint
from weitiao.data.column_names import POSSIBLE_SPANS, SPANS, TAGS, TEXTS, TOKENS, first_of
from weitiao.data.columns import ColumnMapping, columns_of, is_empty, text_of, texts_of, unpacked
from weitiao.data.word_units import join_tokens, split_units

EXAMPLE_TYPE = TokenTags
OBJECTIVE = "token_classification"
TARGETS = ("tokens", "tags", "text", "entities")
NOT_FOUND = Message("no columns of tokens and tags, and none of a text and its entities, found")
COLUMNS = "{tokens: ..., tags: ...} or {text: ..., entities: ...}"
INPUTS = ("text",)

STARTS, ENDS = ("start", "start_offset", "begin"), ("end", "end_offset")  # the keys of an entity
KINDS, WORDS = ("label", "labels", "type", "entity_group", "tag"), ("text", "value", "word", "mention", "surface")

Offsets = tuple[tuple[int, int], ...]
Span = tuple[int, int, str]  # start and end in characters, type


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    mappings: list[ColumnMapping] = []
    lists = _lists(first_values)
    tokens, tags = first_of(TOKENS, lists), first_of(TAGS, lists)
    if tokens and tags:
        mappings.append(_token_tags(tokens, tags))
    text, spans = first_of(TEXTS, first_values), first_of(SPANS, lists)
    spans = spans or first_of(POSSIBLE_SPANS, [x for x, value in lists.items() if _is_span(*value[:1])])
    if text and spans:
        mappings.append(_text_spans(text, spans))
    return mappings


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if {"tokens", "tags"} <= columns.keys():
        return _token_tags(columns["tokens"], columns["tags"])
    return _text_spans(columns["text"], columns["entities"]) if {"text", "entities"} <= columns.keys() else None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """Tokens, or else a text, without tags; a text is split into units here."""
    lists = _lists(first_values)
    tokens = first_of((columns["tokens"],) if "tokens" in columns else () if "text" in columns else TOKENS, lists)
    text = first_of((columns["text"],) if "text" in columns else TEXTS, first_values)
    if not tokens and not text:
        return None

    def make(record: dict[str, Any]) -> TokenTags:
        if tokens and (not text or isinstance(unpacked(record.get(tokens)), (list, tuple))):
            return TokenTags(*_joined(record, tokens), ())
        content = text_of(record, text or "")
        return TokenTags(content, tuple(split_units(content)), ())

    return ColumnMapping(" | ".join(x for x in (tokens, text) if x), TokenTags, make, reads=columns_of(tokens, text))


def _lists(first_values: dict[str, Any]) -> dict[str, Any]:
    """The columns that hold lists; in a table, as text."""
    cells = {name: unpacked(value) for name, value in first_values.items()}
    return {name: value for name, value in cells.items() if isinstance(value, (list, tuple))}


def _token_tags(tokens: str, tags: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TokenTags:
        text, units = _joined(record, tokens)
        values = unpacked(record.get(tags))
        if not isinstance(values, (list, tuple)):
            raise InvalidValue("column {column!r} is missing or not a list of tags", column=tags)
        if len(values) != len(units):
            raise InvalidValue(
                "{num_tokens} tokens ({tokens}) but {num_tags} tags ({tags})",
                num_tokens=len(units),
                tokens=tokens,
                num_tags=len(values),
                tags=tags,
            )
        return TokenTags(text, units, tuple(_tag(x, i, tags) for i, x in enumerate(values)))

    reads, texts = (tokens, tags), texts_of(text=(tokens,))
    return ColumnMapping(f"{tokens} -> tags: {tags}", TokenTags, make, reads=reads, texts=texts, has_offsets=True)


def _tag(value: Any, i: int, column: str) -> str:
    """A tag as text; 2.0 becomes "2", because a table with missing values has floats."""
    if is_empty(value) or not isinstance(value, (str, int, float)):
        raise InvalidValue("{column}[{i}] is {value!r}, not a tag", column=column, i=i, value=value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _joined(record: dict[str, Any], key: str) -> tuple[str, Offsets]:
    """(the tokens as one text, start and end of each)."""
    tokens = unpacked(record.get(key))
    if not isinstance(tokens, (list, tuple)):
        raise InvalidValue("column {column!r} is missing or not a list of tokens", column=key)
    invalid = next((i for i, x in enumerate(tokens) if not isinstance(x, str) or not x), None)
    if invalid is not None:
        raise InvalidValue("{column}[{i}] is {value!r}, not a token", column=key, i=invalid, value=tokens[invalid])
    if not any(x.strip() for x in tokens):
        raise InvalidValue("the text is empty")
    text, offsets = join_tokens(tokens)
    return text, tuple(offsets)


def _text_spans(text: str, column: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> TokenTags:
        content, values = text_of(record, text), unpacked(record.get(column))
        if not isinstance(values, (list, tuple)):
            raise InvalidValue("column {column!r} is missing or not a list of entities", column=column)
        units = split_units(content)
        spans = sorted(_span(x, i, column, content) for i, x in enumerate(values))
        for (start, end, kind), (next_start, _, next_kind) in zip(spans, spans[1:]):
            if next_start < end:
                raise InvalidValue(
                    "the entities {text!r} ({kind}) and ({next_kind}) at {next_start} overlap",
                    text=content[start:end],
                    kind=kind,
                    next_kind=next_kind,
                    next_start=next_start,
                )
        entities = [_entity(span, units, content) for span in spans]
        return TokenTags(content, tuple(units), tuple(entities_to_tags(entities, len(units))))

    reads, texts = (text, column), texts_of(text=(text,))
    return ColumnMapping(f"{text} -> tags: {column}", TokenTags, make, reads=reads, texts=texts, has_offsets=True)


def _is_span(value: Any = None) -> bool:
    if isinstance(value, dict):
        return all(first_of(names, value) for names in (STARTS, ENDS, KINDS))
    return isinstance(value, (list, tuple)) and len(value) == 3


def _span(value: Any, i: int, column: str, text: str) -> Span:
    """One entity of a row, checked."""
    if not _is_span(value):
        raise InvalidValue("{column}[{i}] is neither {{start, end, label}} nor [start, end, label]", column=column, i=i)
    named = isinstance(value, dict)
    start, end, kind = (value[first_of(names, value) or ""] for names in (STARTS, ENDS, KINDS)) if named else value
    kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind  # Label Studio
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
    if not whole or is_empty(kind) or not isinstance(kind, (str, int, float)):
        raise InvalidValue(
            "{column}[{i}] is {start!r} to {end!r}, {label!r}; expected two whole numbers and a label",
            column=column,
            i=i,
            start=start,
            end=end,
            label=kind,
        )
    mention = value.get(first_of(WORDS, value) or "") if named else None
    mention = mention.strip() if isinstance(mention, str) and mention.strip() else None
    inside = 0 <= start < end <= len(text)
    if mention is not None and (not inside or text[start:end].strip() != mention):
        raise InvalidValue(
            "{column}[{i}] is {words!r}, but the text at {start} to {end} is {slice!r}{hint}",
            column=column,
            i=i,
            words=mention,
            start=start,
            end=end,
            slice=text[max(start, 0) : max(end, 0)],
            hint=offset_hint(text, start, end, mention),
        )
    if not inside:
        raise InvalidValue(
            "{column}[{i}] is {start} to {end}, outside the text of {length} characters{hint}",
            column=column,
            i=i,
            start=start,
            end=end,
            length=len(text),
            hint=_outside_hint(text, start, end),
        )
    return start, end, str(kind).strip()


def _outside_hint(text: str, start: int, end: int) -> Message:
    """Why an entity without its words may lie outside the text."""
    if 0 <= start == end < len(text):
        return END_INSIDE
    wide = sum(ord(x) > 0xFFFF for x in text)
    if wide and 0 <= start < end <= len(text) + wide:
        return UTF16
    return Message("")


def _entity(span: Span, units: list[tuple[int, int]], text: str) -> Entity:
    """A span in characters as an entity in units."""
    start, end, kind = span
    covered = [u for u, (a, b) in enumerate(units) if a < end and b > start]
    if not covered:
        raise InvalidValue("the entity at {start} to {end} ({kind}) contains no word", start=start, end=end, kind=kind)
    first, last = covered[0], covered[-1]
    for edge, (a, b) in ((start, units[first]), (end, units[last])):
        if a < edge < b:
            raise InvalidValue(
                "the entity {entity!r} ({kind}) at {start} ends or starts inside the word {word!r}{hint}",
                entity=text[start:end],
                kind=kind,
                start=start,
                word=text[a:b],
                hint=END_INSIDE if edge == end == b - 1 else Message(""),
            )
    return first, last + 1, kind
