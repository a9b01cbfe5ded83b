"""Parquet, read by pyarrow in batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from weitiao.core.errors import DataError
from weitiao.data.arrow_tables import DAMAGE, first_line, records, seekable
from weitiao.data.records import Record

ENDINGS = (".parquet",)
BATCH_ROWS = 1024


def read(path: Path, encoding: str) -> Iterator[Record]:
    """One record per row.

    Raises:
        DataError: the file is not Parquet, or is damaged.
    """
    try:
        file = pq.ParquetFile(seekable(path))
    except DAMAGE as error:
        raise DataError("{path} is not a Parquet file: {error}", path=path, error=first_line(error)) from None
    yield from records(path, file.schema_arrow, lambda: file.iter_batches(batch_size=BATCH_ROWS))
