"""Arrow's own files: Feather 2 and IPC files, and IPC streams, as Hugging Face datasets caches them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from weitiao.core.errors import DataError
from weitiao.data.arrow_tables import DAMAGE, first_line, records, seekable
from weitiao.data.records import Record

ENDINGS = (".arrow", ".feather", ".ipc")
FEATHER_1 = b"FEA1"


def read(path: Path, encoding: str) -> Iterator[Record]:
    """One record per row.

    Raises:
        DataError: the file is not Arrow's, or is damaged.
    """
    position = seekable(path)
    opened = pa.memory_map(str(position)) if isinstance(position, Path) else pa.PythonFile(position)
    with opened:
        head = opened.read(8)
        opened.seek(0)
        if head.startswith(FEATHER_1):
            raise DataError("{path} is Feather of version 1: write it again, as version 2 or as Parquet.", path=path)
        try:
            file = pa.ipc.open_file(opened) if head.startswith(b"ARROW1") else pa.ipc.open_stream(opened)
        except DAMAGE as error:
            raise DataError("{path} is not an Arrow file: {error}", path=path, error=first_line(error)) from None
        yield from records(path, file.schema, lambda: _batches(file))


def _batches(file: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterable[pa.RecordBatch]:
    if isinstance(file, pa.RecordBatchStreamReader):
        return file
    return (file.get_batch(i) for i in range(file.num_record_batches))
