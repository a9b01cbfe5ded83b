"""JSON Lines: one object per line. A broken line is a bad row; the other lines are read."""

import json
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.records import Record, decode, lines_of

ENDINGS = (".jsonl", ".ndjson", ".json")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """The records of a .jsonl file, or of a .json file that is one list of objects."""
    if path.suffix == ".json" and _starts_with_list(path):
        yield from _one_list(path, encoding)
        return
    for where, text in lines_of(path, encoding):
        if isinstance(text, BadRow):
            yield text
            continue
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            yield BadRow(
                where, Message("not JSON: {error} at column {column}", error=error.msg, column=error.colno), text[:200]
            )
            continue
        except RecursionError:
            yield BadRow(where, Message("nested too deeply"), text[:200])
            continue
        if isinstance(value, dict):
            yield Record(where, value)
        else:
            yield BadRow(where, Message("not an object but {type}", type=type(value).__name__), text[:200])


def _starts_with_list(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _one_list(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    whole = SourceLocation(str(path), 1, 0)
    text = decode(path.read_bytes(), encoding, whole)
    if isinstance(text, BadRow):
        yield text
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        yield BadRow(
            SourceLocation(str(path), error.lineno, error.pos), Message("not JSON: {error}", error=error.msg), text[:200]
        )
        return
    for i, value in enumerate(values, 1):
        where = SourceLocation(str(path), i)
        if isinstance(value, dict):
            yield Record(where, value)
        else:
            yield BadRow(where, Message("not an object but {type}", type=type(value).__name__), str(value)[:200])
