"""Plain text and Markdown. A file is one document; form feeds (\\f) separate several documents in one file."""

import re
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, TextDecoder
from weitiao.data.unpacking import read_file

ENDINGS = (".txt", ".md", ".rst", ".text")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per document, with the column `text`."""
    raw, decoder = read_file(path), TextDecoder(path, encoding)
    if decoder.is_wide:
        yield from _wide(path, raw, decoder)
        return
    offset, line = 0, 1
    for part in re.findall(rb"[^\f]*\f|[^\f]+$", raw):
        where = SourceLocation(str(path), line, offset, len(part))
        text = decoder.decode(part.removesuffix(b"\f"), where)
        if isinstance(text, BadRow):
            yield text
        elif text.strip():
            yield Record(where, {"text": text})
        offset += len(part)
        line += part.count(b"\n")


def _wide(path: Path, raw: bytes, decoder: TextDecoder) -> Iterator[Record | BadRow]:
    """The documents of a file in UTF-16 or UTF-32, where a byte is no character."""
    text = decoder.decode(raw, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        yield text
        return
    line = 1
    for part in text.split("\f"):
        if part.strip():
            yield Record(SourceLocation(str(path), line), {"text": part})
        line += part.count("\n")
