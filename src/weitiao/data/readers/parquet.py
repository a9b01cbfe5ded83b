"""Parquet, read by pyarrow in batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record

ENDINGS = (".parquet",)


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per row.

    Raises:
        DataError: the file is not Parquet.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError("{path} is not a Parquet file: {error}", path=path, error=reason) from None
    columns = file.schema_arrow.names
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError("{path} has the column {names} more than once.", path=path, names=", ".join(map(repr, repeated)))
    row = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                row += 1
                yield Record(SourceLocation(str(path), row), fields)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # a damaged page, text that is not UTF-8
        raise DataError(
            "{path}: cannot be read behind row {row}: {error}", path=path, row=row, error=str(error).splitlines()[0]
        ) from None
