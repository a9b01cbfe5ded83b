"""What readers share: a Record is one row of a file before anyone asked what its columns mean."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.example import BadRow, Where


@dataclass(frozen=True)
class Record:
    """Columns by name, and where they stood."""

    where: Where
    fields: dict[str, Any]


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line from 1, byte offset, the line's bytes without its end). A BOM at the start is left out."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            start, size = offset, len(raw)
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            yield number, start, raw.rstrip(b"\r\n")
            offset += size


def decode(raw: bytes, encoding: str, where: Where) -> str | BadRow:
    """Bytes as text. `auto` is UTF-8; other encodings are never guessed, but named when they would fit."""
    name = "utf-8-sig" if encoding == "auto" else encoding
    try:
        return raw.decode(name)
    except UnicodeDecodeError as trouble:
        return BadRow(
            where, f"not {name.removesuffix('-sig')} at byte {trouble.start} of the line.{_hint(raw)}", repr(raw[:80])
        )


def _hint(raw: bytes) -> str:
    for name, means in (("utf-16", raw[:2] in (b"\xff\xfe", b"\xfe\xff")), ("gb18030", True)):
        try:
            text = raw.decode(name)
        except UnicodeDecodeError:
            continue
        if means and any("\u4e00" <= c <= "\u9fff" for c in text) or name == "utf-16":
            return f" It reads well as {name}: write encoding: {name} under this source."
    return ""
