"""Plain text. A file is one document; form feeds (\\f) separate several documents in one file."""

from collections.abc import Iterator
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, decode, is_wide

ENDINGS = (".txt", ".md", ".rst", ".text")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per document, with the column `text`."""
    raw = path.read_bytes()
    if is_wide(encoding):
        yield from _wide(path, raw, encoding)
        return
    offset, line = 0, 1
    for part in raw.split(b"\f"):
        where = SourceLocation(str(path), line, offset)
        text = decode(part, encoding, where)
        if isinstance(text, BadRow):
            yield text
        elif text.strip():
            yield Record(where, {"text": text})
        offset += len(part) + 1
        line += part.count(b"\n")


def _wide(path: Path, raw: bytes, encoding: str) -> Iterator[Record | BadRow]:
    """The documents of a file in UTF-16 or UTF-32, where a byte is no character."""
    text = decode(raw, encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        yield text
        return
    line = 1
    for part in text.split("\f"):
        if part.strip():
            yield Record(SourceLocation(str(path), line), {"text": part})
        line += part.count("\n")
