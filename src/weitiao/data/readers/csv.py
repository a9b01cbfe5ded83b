"""CSV and TSV with a header line; separated by , ; | or tabs. Quoted fields may contain line breaks; a row of another width
is a bad row."""

import csv
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.readers._csv_dialect import SEPARATOR, choose_dialect
from weitiao.data.records import Record, decode

ENDINGS = (".csv", ".tsv")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per row, with the names of the header.

    Raises:
        DataError: the encoding is wrong (a table cannot be cut into rows before it is decoded), or the header is unusable.
    """
    text = decode(path.read_bytes(), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        raise DataError("{path}: {reason}", path=path, reason=text.reason)
    csv.field_size_limit(1 << 30)
    try:
        dialect = choose_dialect(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    except InvalidValue as error:
        raise DataError("{path}: {reason}", path=path, reason=error.message) from None
    header: list[str] | None = None
    for line, row in dialect.rows(text):
        where = SourceLocation(str(path), line)
        if isinstance(row, str) and header is None:
            raise DataError("{path}, line {line}: the header is not CSV: {error}", path=path, line=line, error=row)
        if isinstance(row, str):
            yield BadRow(where, Message("not CSV: {error}", error=row))
        elif not row or (line == 1 and text[: len(SEPARATOR)].lower() == SEPARATOR):
            continue
        elif header is None:
            header = _header(path, line, row)
        elif len(row) != len(header):
            reason = Message("{n} fields, but the header has {expected}", n=len(row), expected=len(header))
            yield BadRow(where, reason, ",".join(row)[:200])
        else:
            yield Record(where, dict(zip(header, row)))


def _header(path: Path, line: int, row: list[str]) -> list[str]:
    """The names of the columns; one without a name is called by its number.

    Raises:
        DataError: two have the same name.
    """
    names = [name.strip("\ufeff \t\r\n") or f"column {i}" for i, name in enumerate(row, 1)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            "{path}, line {line}: the header has {names} more than once. Rename one of them.",
            path=path,
            line=line,
            names=", ".join(map(repr, repeated)),
        )
    return names
