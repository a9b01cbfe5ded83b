"""Record: one row of a file, before its columns have a meaning. What all readers use."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message


@dataclass(frozen=True)
class Record:
    """Column values by name, and where they come from."""

    where: SourceLocation
    fields: dict[str, Any]


class ExcludedRow(InvalidValue):
    """A row that says of itself that it is not to be trained on: left out and counted, but not a bad row."""


class Reader(Protocol):
    """One file in data/readers/: reads one file format row by row.

    Where several readers share an ending, one with `looks_like(path) -> bool` is tried first.
    """

    ENDINGS: tuple[str, ...]
    """The file name endings it reads, in lower case with the dot."""

    def read(self, path: Path, encoding: str) -> Iterator[Record | BadRow]: ...


def lines_of(path: Path, encoding: str) -> Iterator[tuple[SourceLocation, str | BadRow]]:
    """(location, text) of each line. A leading BOM is dropped; UTF-16 and UTF-32 get no byte offsets."""
    if is_wide(encoding):
        text = decode(path.read_bytes(), encoding, SourceLocation(str(path), 1, 0))
        for number, line in enumerate([text] if isinstance(text, BadRow) else text.split("\n"), 1):
            yield SourceLocation(str(path), number), line
        return
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            start, size = offset, len(raw)
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            where = SourceLocation(str(path), number, start)
            yield where, decode(raw.rstrip(b"\r\n"), encoding, where)
            offset += size


def is_wide(encoding: str) -> bool:
    """UTF-16 or UTF-32: a line break is more than one byte."""
    return re.match(r"utf[-_]?(16|32)", encoding.lower()) is not None


def decode(raw: bytes, encoding: str, where: SourceLocation) -> str | BadRow:
    """Bytes as text. `auto` is UTF-8; other encodings are never guessed, but suggested where they would fit."""
    name = "utf-8-sig" if encoding == "auto" else encoding
    try:
        return raw.decode(name)
    except LookupError:
        raise DataError(
            "{path}: there is no encoding {encoding!r}; common ones are utf-8, gb18030, big5, utf-16, latin-1",
            path=where.file,
            encoding=encoding,
        ) from None
    except UnicodeDecodeError as error:
        fields = {"encoding": name.removesuffix("-sig"), "byte": error.start}
        reason = Message("not {encoding} at byte {byte} of the line", **fields)
        if fitting := _fitting_encoding(raw):
            reason = Message(
                "not {encoding} at byte {byte} of the line. It decodes as {fitting}: set encoding: {fitting} for this "
                "source",
                fitting=fitting,
                **fields,
            )
        return BadRow(where, reason, repr(raw[:80]))


def _fitting_encoding(raw: bytes) -> str:
    """utf-16 or gb18030, where the bytes decode to plausible text; else ""."""
    name = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "gb18030"
    try:
        plausible = name == "utf-16" or any("\u4e00" <= c <= "\u9fff" for c in raw.decode(name))
    except UnicodeDecodeError:
        return ""
    return name if plausible else ""
