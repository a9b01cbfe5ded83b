"""JSON Lines: one object per line. A broken line is a bad row; the other lines are read.

Also one list of objects, objects over several lines, and one object that holds the rows ({"train": [...]}): what the
file is decides, not its ending.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.json_values import complete_objects, json_kind, parse_line, parse_plain, rows_inside, values_of
from weitiao.data.records import Record, TextDecoder, decode, lines_of
from weitiao.data.unpacking import open_file, read_file

ENDINGS = (".jsonl", ".ndjson", ".json")
LIST_OF_OBJECTS = re.compile(r"\ufeff?\s*\[\s*(\{|\n|$)")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """The records of a file."""
    text = None if _is_by_line(path, encoding) else decode(read_file(path), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        yield text
    elif text is not None:
        yield from _document(path, text, encoding)
    else:
        yield from _lines(path, encoding)


def _is_by_line(path: Path, encoding: str) -> bool:
    """Whether the first line is a whole object, and not one that holds all rows; or cannot be part of a document."""
    lines = (line for _, line in lines_of(path, encoding) if isinstance(line, BadRow) or line.strip())
    first = next(lines, "")
    if isinstance(first, BadRow) or first.lstrip("\ufeff \t\r")[:1] not in ("[", "{"):
        return True
    try:
        value = parse_line(first)
        return isinstance(value, dict) and (next(lines, None) is not None or rows_inside(value) is None)
    except InvalidValue:
        return False


def _lines(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    decoder = TextDecoder(path, encoding)
    yield from _utf8_lines(path, decoder) if decoder.is_utf8 else _decoded_lines(path, encoding)


def _utf8_lines(path: Path, decoder: TextDecoder) -> Iterator[Record | BadRow]:
    """Lines that are parsed as bytes; one that is not plain JSON is decoded first, as in a file of another encoding."""
    name, offset = str(path), 0
    with open_file(path) as file:
        for number, raw in enumerate(file, 1):
            where = SourceLocation(name, number, offset, len(raw))
            offset += len(raw)
            value = parse_plain(raw)
            if type(value) is dict:
                yield Record(where, value)
                continue
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if (row := _line(where, decoder.decode(raw.rstrip(b"\r\n"), where))) is not None:
                yield row


def _decoded_lines(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    for where, text in lines_of(path, encoding):
        if (row := _line(where, text)) is not None:
            yield row


def _line(where: SourceLocation, text: str | BadRow) -> Record | BadRow | None:
    """The row of one line; None if it is blank."""
    if isinstance(text, BadRow):
        return text
    if not text.strip():
        return None
    try:
        return _record(where, parse_line(text), text)
    except InvalidValue as error:
        return BadRow(where, error.message, text[:200], "json")


def _document(path: Path, text: str, encoding: str) -> Iterator[Record | BadRow]:
    """Rows of a text that is JSON as a whole; if it is not, its lines, where most of them are objects of their own."""
    whole = SourceLocation(str(path), 1, 0)
    try:
        values = values_of(text)
    except InvalidValue as error:
        by_line = list(complete_objects(text))
        if not LIST_OF_OBJECTS.match(text) and 2 * sum(by_line) >= len(by_line):
            yield from _lines(path, encoding)
        else:
            yield BadRow(whole, error.message, text[:200], "json")
        return
    try:
        rows = _rows_of(values[0]) if len(values) == 1 else values
    except InvalidValue as error:
        yield BadRow(whole, error.message, text[:200], "json")
        return
    for line, value in rows:
        yield _record(SourceLocation(str(path), line), value, str(value))


def _rows_of(only: tuple[int, Any]) -> list[tuple[int, Any]]:
    """The rows of a file with one value: the elements of a list, counted from 1, or those that an object holds."""
    line, value = only
    if isinstance(value, dict):
        inside = rows_inside(value)
        if inside is None:
            return [only]
        value = inside[1]
    return list(enumerate(value, 1)) if isinstance(value, list) else [(line, value)]


def _record(where: SourceLocation, value: Any, text: str) -> Record | BadRow:
    if not isinstance(value, dict):
        return BadRow(where, Message("not an object but {type}", type=json_kind(value)), repr(text)[:200], "json")
    try:
        "".join(value).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(where, Message("a key has an unpaired surrogate, which is not a character"), code="json")
    return Record(where, value)
