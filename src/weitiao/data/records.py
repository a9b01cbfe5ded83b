"""Record: one row of a file, before its columns have a meaning. What all readers use."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.encodings import encoding_of, fitting_encodings
from weitiao.data.unpacking import open_file, read_file


@dataclass(slots=True)
class Record:
    """Column values by name, and where they come from. Nobody changes one; frozen, it would cost twice the time."""

    where: SourceLocation
    fields: dict[str, Any]


class ExcludedRow(InvalidValue):
    """A row that says of itself that it is not to be trained on: left out and counted, but not a bad row."""


class Reader(Protocol):
    """One file in data/readers/: reads one file format row by row.

    Where several readers share an ending, one with `looks_like(path) -> bool` is tried first. One whose format loses
    something has `findings(path)`, which says what.
    """

    ENDINGS: tuple[str, ...]
    """The file name endings it reads, in lower case with the dot."""

    def read(self, path: Path, encoding: str) -> Iterator[Record | BadRow]: ...


class TextDecoder:
    """How the bytes of one file become text: in the encoding that is set, or in the one that is proven."""

    def __init__(self, path: Path, encoding: str) -> None:
        """Raises:
        DataError: there is no such encoding.
        """
        self.proven = encoding_of(path) if encoding == "auto" else None
        self.codec = self.proven.codec if self.proven else encoding
        try:
            codecs.lookup(self.codec)
        except LookupError:
            raise DataError(
                "{path}: there is no encoding {encoding!r}; common ones are utf-8, gb18030, big5, utf-16, latin-1",
                path=path,
                encoding=encoding,
            ) from None

    @property
    def is_wide(self) -> bool:
        """UTF-16 or UTF-32: a line break is more than one byte."""
        return re.match(r"utf[-_]?(16|32)", self.codec.lower()) is not None

    @property
    def is_utf8(self) -> bool:
        """All lines are UTF-8, or bad rows."""
        return codecs.lookup(self.codec).name in ("utf-8", "utf-8-sig") and not (self.proven and self.proven.is_mixed)

    def decode(self, raw: bytes, where: SourceLocation) -> str | BadRow:
        """One or more lines as text; a bad row, if a line is neither in the file's encoding nor provably in another."""
        if self.proven is None or not self.proven.is_mixed:
            try:
                return raw.decode(self.codec)
            except UnicodeDecodeError:
                return self._undecodable(raw, where)
        lines = []
        for line in raw.split(b"\n"):
            text = self.proven.decode_line(line)
            if text is None:
                return self._undecodable(line, where)
            lines.append(text)
        return "\n".join(lines)

    def _undecodable(self, line: bytes, where: SourceLocation) -> BadRow:
        byte = _first_undecodable(line, self.codec)
        if byte is None:
            reason = Message(
                "it is not certain whether this is UTF-8 or GB18030: set the encoding of this source, as in encoding: utf-8"
            )
            return BadRow(where, reason, repr(line[:80]), "encoding")
        names = {"encoding": self.codec.removesuffix("-sig"), "byte": byte}
        reason = Message("not {encoding} at byte {byte} of the line", **names)
        if self.proven and (fitting := fitting_encodings(line)):
            reason = Message(
                "not {encoding} at byte {byte} of the line. It may be {fitting}, but that is not certain: save the file as "
                "UTF-8, or set the encoding of this source, as in encoding: {first}",
                fitting=", ".join(fitting),
                first=fitting[0],
                **names,
            )
        return BadRow(where, reason, repr(line[max(0, byte - 40) :][:80]), "encoding")


def _first_undecodable(line: bytes, codec: str) -> int | None:
    try:
        line.decode(codec)
    except UnicodeDecodeError as error:
        return error.start
    return None


def lines_of(path: Path, encoding: str) -> Iterator[tuple[SourceLocation, str | BadRow]]:
    """(location, text) of each line. A leading BOM is dropped; UTF-16 and UTF-32 get no byte offsets."""
    decoder = TextDecoder(path, encoding)
    if decoder.is_wide:
        text = decoder.decode(read_file(path), SourceLocation(str(path), 1, 0))
        for number, line in enumerate([text] if isinstance(text, BadRow) else text.split("\n"), 1):
            yield SourceLocation(str(path), number), line
        return
    offset = 0
    with open_file(path) as file:
        for number, raw in enumerate(file, 1):
            where = SourceLocation(str(path), number, offset, len(raw))
            offset += len(raw)
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            yield where, decoder.decode(raw.rstrip(b"\r\n"), where)


def decode(raw: bytes, encoding: str, where: SourceLocation) -> str | BadRow:
    """Bytes of a file as text."""
    return TextDecoder(Path(where.file), encoding).decode(raw, where)
