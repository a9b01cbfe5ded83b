"""CSV and TSV with a header line. Quoted fields may contain line breaks; a row of another width is a bad row."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.records import Record, decode

ENDINGS = (".csv", ".tsv")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per row, with the names of the header.

    Raises:
        DataError: the file's encoding is wrong (a table cannot be cut into rows before it is decoded).
    """
    text = decode(path.read_bytes(), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        raise DataError("{path}: {reason}", path=path, reason=text.reason)
    csv.field_size_limit(1 << 30)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(SourceLocation(str(path), line), Message("not CSV: {error}", error=str(error)))
            continue
        if header is None:
            header = [name.strip() for name in row]
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(
                    "{path}, line {line}: the header has {names} more than once. Rename one of them.",
                    path=path,
                    line=line,
                    names=", ".join(map(repr, repeated)),
                )
        elif len(row) != len(header):
            if row:
                reason = Message("{n} fields, but the header has {expected}", n=len(row), expected=len(header))
                yield BadRow(SourceLocation(str(path), line), reason, ",".join(row)[:200])
        else:
            yield Record(SourceLocation(str(path), line), dict(zip(header, row)))
