"""Plain text. A file is one document; form feeds (\\f) separate several documents in one file."""

from collections.abc import Iterator
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, decode

ENDINGS = (".txt", ".md", ".rst", ".text")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per document, with the column `text`."""
    raw = path.read_bytes()
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
