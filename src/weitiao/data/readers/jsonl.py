"""JSON Lines: one object a line. Every line stands alone: a broken one is named and the rest goes on."""

import json
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, decode, lines_of

ENDINGS = (".jsonl", ".ndjson", ".json")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """Records of a .jsonl file; a .json file that holds one list of objects is read too."""
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
            yield BadRow(where, f"not JSON: {error.msg} at column {error.colno}", text[:200])
            continue
        except RecursionError:
            yield BadRow(where, "nested too deep", text[:200])
            continue
        if isinstance(value, dict):
            yield Record(where, value)
        else:
            yield BadRow(where, f"not an object but {type(value).__name__}", text[:200])


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
        yield BadRow(SourceLocation(str(path), error.lineno, error.pos), f"not JSON: {error.msg}", text[:200])
        return
    for i, value in enumerate(values, 1):
        where = SourceLocation(str(path), i)
        yield Record(where, value) if isinstance(value, dict) else BadRow(where, "not an object", str(value)[:200])
