"""Encoded rows as an Arrow file, written chunk by chunk: only one chunk is in memory."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK = 1024  # rows written at once
COLUMNS = [  # and one column for each named target: targets.class_id, token_targets.word_id ...
    ("input_ids", pa.list_(pa.int32())),
    ("labels", pa.list_(pa.int32())),
    ("num_targets", pa.int32()),
    ("source", pa.int32()),
    ("file", pa.string()),
    ("line", pa.int64()),
    ("offset", pa.int64()),
    ("task", pa.string()),
    ("audio", pa.struct([("file", pa.string()), ("sha256", pa.string())])),
]


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table, with a column for each target that one of them has."""
    targets = {key: value for row in rows for key, value in row.items() if "." in key}
    return pa.Table.from_pylist(list(rows), _schema({key: _arrow_type(value) for key, value in targets.items()}))


class RowFile:
    """An Arrow file that appears under its name when it is complete.

    Chunks may have different targets: a file of several tasks has those of all. What is written so far is then a part, and
    the parts are joined in the end.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.num_rows = file, 0
        self._parts: list[Path] = []
        self._targets: dict[str, pa.DataType] = {}
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        file.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for part in self._parts:
            with suppress(FileNotFoundError):
                part.unlink()

    def write(self, table: pa.Table) -> None:
        """Add rows behind those that are written."""
        if table.schema != self._schema:
            self._open(table.schema)
        for name in table.schema.names[len(COLUMNS) :]:
            self._targets[name] = table.schema.field(name).type
        self._writer.write_table(table)
        self.num_rows += len(table)

    def finish(self) -> None:
        """Put the file in its place."""
        if not self._parts:
            self._open(_schema({}))
        self._close()
        if len(self._parts) > 1:
            self._join()
        os.replace(self._parts.pop(), self.file)

    def _open(self, schema: pa.Schema) -> None:
        self._close()
        self._parts.append(self.file.with_suffix(f".{os.getpid()}.{len(self._parts)}.tmp"))
        self._schema, self._writer = schema, pa.ipc.new_file(str(self._parts[-1]), schema)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _join(self) -> None:
        """All parts in a new one, with the targets of all."""
        parts, schema = list(self._parts), _schema(self._targets)
        self._open(schema)
        for part in parts:
            with pa.memory_map(str(part)) as source:
                for number in range((reader := pa.ipc.open_file(source)).num_record_batches):
                    batch = pa.Table.from_batches([reader.get_batch(number)])
                    columns = [
                        batch[x.name].cast(x.type) if x.name in batch.column_names else pa.nulls(len(batch), x.type)
                        for x in schema
                    ]
                    self._writer.write_table(pa.table(columns, schema=schema))
        self._close()
        for part in parts:
            part.unlink()
        self._parts = self._parts[-1:]


def _schema(targets: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*COLUMNS, *sorted(targets.items())])


def _arrow_type(target: Any) -> pa.DataType:
    array = np.asarray(target)
    number = pa.float32() if array.dtype.kind == "f" else pa.int32()
    return pa.list_(number) if array.ndim else number
