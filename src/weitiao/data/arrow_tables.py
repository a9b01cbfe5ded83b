"""Tables of Arrow's columns (Parquet, Feather, IPC), read in batches of rows."""

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from weitiao.core.errors import DataError
from weitiao.core.example import SourceLocation
from weitiao.data.records import Record
from weitiao.data.unpacking import is_packed, read_file

DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)  # a damaged page, text that is not UTF-8


def seekable(path: Path) -> Path | BinaryIO:
    """What pyarrow opens: the file, or the unpacked bytes of one that is compressed."""
    return BytesIO(read_file(path)) if is_packed(path) else path


def records(path: Path, schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]]) -> Iterator[Record]:
    """One record per row.

    Raises:
        DataError: a column is there twice, or the file is damaged.
    """
    row = 0
    try:
        names = schema.names
        repeated = sorted({name for name in names if names.count(name) > 1})
    except DAMAGE as error:  # a name that is not UTF-8
        raise DataError("{path} is damaged: {error}", path=path, error=first_line(error)) from None
    if repeated:
        raise DataError("{path} has the column {names} more than once.", path=path, names=", ".join(map(repr, repeated)))
    try:
        for batch in batches():
            batch.validate(full=True)  # offsets of a damaged file would lead out of its memory
            for fields in batch.to_pylist():
                row += 1
                yield Record(SourceLocation(str(path), row), fields)
    except DAMAGE as error:
        raise DataError(
            "{path}: cannot be read behind row {row}: {error}", path=path, row=row, error=first_line(error)
        ) from None


def first_line(error: Exception) -> str:
    """What an error of Arrow says, without its details."""
    return next(iter(str(error).splitlines()), type(error).__name__)
