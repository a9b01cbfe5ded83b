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
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("{path} is not a Parquet file: {error}", path=path, error=str(error).splitlines()[0]) from None
    row = 0
    for batch in file.iter_batches(batch_size=1024):
        for fields in batch.to_pylist():
            row += 1
            yield Record(SourceLocation(str(path), row), fields)
