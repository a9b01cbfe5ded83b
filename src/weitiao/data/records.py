"""What readers share: a Record is one row of a file before anyone asked what its columns mean."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation


@dataclass(frozen=True)
class Record:
    """Columns by name, and where they stood."""

    where: SourceLocation
    fields: dict[str, Any]


class Reader(Protocol):
    """One file in data/readers/: what a file of this format holds, row by row.

    Where several readers share an ending, one with `looks_like(path) -> bool` is asked first.
    """

    ENDINGS: tuple[str, ...]
    """File name endings it reads, lower case with the dot."""

    def read(self, path: Path, encoding: str) -> Iterator[Record | BadRow]: ...


def lines_of(path: Path, encoding: str) -> Iterator[tuple[SourceLocation, str | BadRow]]:
    """Each line's place and text. A BOM at the start is left out; UTF-16 and UTF-32 have no byte offsets."""
    if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
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


def decode(raw: bytes, encoding: str, where: SourceLocation) -> str | BadRow:
    """Bytes as text. `auto` is UTF-8; other encodings are never guessed, but named when they would fit."""
    name = "utf-8-sig" if encoding == "auto" else encoding
    try:
        return raw.decode(name)
    except LookupError:
        known = "usual ones are utf-8, gb18030, big5, utf-16, latin-1"
        raise DataError(f"{where.file}: there is no encoding {encoding!r}; {known}.") from None
    except UnicodeDecodeError as error:
        return BadRow(
            where, f"not {name.removesuffix('-sig')} at byte {error.start} of the line.{_hint(raw)}", repr(raw[:80])
        )


def _hint(raw: bytes) -> str:
    name = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "gb18030"
    try:
        reads = name == "utf-16" or any("\u4e00" <= c <= "\u9fff" for c in raw.decode(name))
    except UnicodeDecodeError:
        return ""
    return f" It reads well as {name}: write encoding: {name} under this source." if reads else ""
