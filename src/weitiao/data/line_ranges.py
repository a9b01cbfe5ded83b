"""A stretch of a JSONL file: the lines that start in it, each with its number, its offset and its bytes.

bytes      0 ......... 1000 ......... 2000 ......... 3000
shard      1            2              3             every line belongs to one stretch, the one in which it starts
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.json_values import json_kind, parse_line, rows_inside
from weitiao.data.records import Record, TextDecoder
from weitiao.data.unpacking import is_packed

CHUNK = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line of a file, and the row that it is; None if it is blank."""

    raw: bytes
    item: Record | BadRow | None


def lines_between(path: Path, encoding: str, start: int, end: int) -> Iterator[Line]:
    """The lines that start at a byte of [start, end)."""
    decoder = TextDecoder(path, encoding)
    with open(path, "rb") as file:
        number, offset = 1, 0
        if start > 0:
            number = 1 + _line_ends(path, start - 1)
            file.seek(start - 1)
            rest = file.readline()  # the end of a line that starts before
            offset = start - 1 + len(rest)
            number += rest.endswith(b"\n")
        while offset < end and (raw := file.readline()):
            yield Line(raw, row_of(raw, SourceLocation(str(path), number, offset, len(raw)), decoder))
            number, offset = number + 1, offset + len(raw)


def _line_ends(path: Path, end: int) -> int:
    """The line breaks in the first bytes of a file."""
    n = 0
    with open(path, "rb") as file:
        while end > 0 and (chunk := file.read(min(CHUNK, end))):
            n += chunk.count(b"\n")
            end -= len(chunk)
    return n


def row_of(raw: bytes, where: SourceLocation, decoder: TextDecoder) -> Record | BadRow | None:
    """The row that a line is, as the reader of JSONL has it; None if it is blank."""
    if where.line == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    text = decoder.decode(raw.rstrip(b"\r\n"), where)
    if isinstance(text, BadRow) or not text.strip():
        return text if isinstance(text, BadRow) else None
    try:
        value: Any = parse_line(text)
    except InvalidValue as error:
        return BadRow(where, error.message, text[:200], "json")
    if not isinstance(value, dict):
        return BadRow(where, Message("not an object but {type}", type=json_kind(value)), repr(text)[:200], "json")
    try:
        "".join(value).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(where, Message("a key has an unpaired surrogate, which is not a character"), code="json")
    return Record(where, value)


def is_splittable(path: Path, encoding: str) -> bool:
    """Whether the rows of a JSONL file can be told from a stretch of its bytes: one object a line, nothing packed."""
    if is_packed(path) or TextDecoder(path, encoding).is_wide:
        return False
    with open(path, "rb") as file:
        filled = (line for line in file if line.strip(b" \t\r\n\xef\xbb\xbf"))
        first, second = next(filled, b""), next(filled, None)
    line = row_of(first, SourceLocation(str(path), 1, 0), TextDecoder(path, encoding))
    if isinstance(line, Record):
        return second is not None or rows_inside(line.fields) is None
    return first.lstrip(b" \t\xef\xbb\xbf")[:1] not in (b"[", b"{")
