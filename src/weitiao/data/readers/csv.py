"""CSV and TSV with a header line. Quoted fields may hold line breaks; rows of another width than the header are named."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, decode

ENDINGS = (".csv", ".tsv")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record a row, by the header's names.

    Raises:
        DataError: the file's encoding is wrong (a table cannot be cut into rows before it is decoded).
    """
    text = decode(path.read_bytes(), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        raise DataError(f"{path}: {text.reason}")
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
            yield BadRow(SourceLocation(str(path), line), f"not CSV: {error}")
            continue
        if header is None:
            header = [name.strip() for name in row]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                words = f"the header names {', '.join(map(repr, twice))} more than once"
                raise DataError(f"{path}, line {line}: {words}. Rename one of them.")
        elif len(row) != len(header):
            if row:
                why = f"{len(row)} fields, the header has {len(header)}"
                yield BadRow(SourceLocation(str(path), line), why, ",".join(row)[:200])
        else:
            yield Record(SourceLocation(str(path), line), dict(zip(header, row)))
