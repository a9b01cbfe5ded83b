"""events.jsonl on disk: append, read from the start, read from the end, remove what was logged after a point.

A killed process can leave its last line torn. Readers skip what is not a JSON object, and the next writer starts a new
line. Reading from the end costs the same for a run of ten steps and of a million.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 8192  # bytes read at a time from the end
HEAD = 4096  # bytes read for the first event


def append(path: Path, record: dict[str, Any]) -> None:
    """Write one line at once; on a new line where the file ends in a torn one."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with open(path, "ab+") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records, from the first to the last."""
    yield from _records(path.read_bytes().split(b"\n") if path.exists() else [])


def read_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The records, from the last to the first; the file is read block by block."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position:
            size = min(BLOCK, position)
            position = file.seek(position - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from _records(reversed(lines))
        yield from _records([rest])


def first(path: Path) -> dict[str, Any]:
    """The first record, or {}."""
    try:
        with open(path, "rb") as file:
            return next(_records(file.read(HEAD).split(b"\n")), {})
    except FileNotFoundError:
        return {}


def _records(lines: Any) -> Iterator[dict[str, Any]]:
    for text in lines:
        try:
            record = json.loads(text)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
