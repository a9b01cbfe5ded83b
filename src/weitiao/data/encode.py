"""Examples -> encoded rows, stored as memory-mapped Arrow under a fingerprint of everything that they depend on."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from weitiao.core.batch import AnnotatedRow, Row
from weitiao.core.errors import DataError
from weitiao.core.example import Audio, BadRow, SourcedExample, SourceLocation
from weitiao.core.files import home
from weitiao.core.messages import Message, reading_in
from weitiao.core.objective import RowEncoder
from weitiao.core.processor import FeatureExtractor, Processor
from weitiao.data.encoding_processes import encoded_chunks
from weitiao.data.row_file import RowFile
from weitiao.data.row_maker import Facts, RowMaker

VERSION = 9  # raised when the same inputs would be encoded differently


@dataclass
class Rows:
    """Encoded rows on disk: rows[i] reads one; lengths and supervised counts are in memory."""

    table: pa.Table
    fingerprint: str
    feature_extractor: FeatureExtractor | None = None
    """Computes audio features, where rows are audio."""

    def __post_init__(self) -> None:
        self.lengths = _list_lengths(self.table["input_ids"])  # [rows]
        self.source = self.table["source"].to_numpy()  # [rows]
        self.supervised = self.table["num_targets"].to_numpy().astype(np.int64)  # [rows]
        tasks = self.table["task"]
        self.tasks: Sequence[str] = [] if tasks.null_count == len(tasks) else tasks.to_pylist()  # [rows], of several tasks
        names = [name.split(".", 1) for name in self.table.column_names if "." in name]
        self._targets = [(kind, name, self.table[f"{kind}.{name}"]) for kind, name in names]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Row:
        row = AnnotatedRow(input_ids=_numbers(self.table["input_ids"][i]), labels=_numbers(self.table["labels"][i]))
        for kind, name, column in self._targets:
            if (value := column[i]).is_valid:
                row.setdefault(kind, {})[name] = _numbers(value) if hasattr(value, "values") else value.as_py()
        audio = self.table["audio"][i].as_py() if self.feature_extractor else None
        if self.feature_extractor and audio:
            row["audio"] = Audio(**audio)
            row["input_features"] = partial(self.feature_extractor.features, row["audio"])
        if self.tasks:
            row["task"] = self.tasks[i]
        return row

    def of(self, task: str) -> "Rows":
        """The rows of one task, as if there were no other."""
        if not task:
            return self
        rows = self.table.filter(pc.field("task") == task)
        alone = rows.set_column(rows.schema.get_field_index("task"), "task", pa.nulls(len(rows), pa.string()))
        return Rows(alone, self.fingerprint, self.feature_extractor)

    def where(self, i: int) -> SourceLocation:
        offset = self.table["offset"][i].as_py()
        return SourceLocation(self.table["file"][i].as_py(), self.table["line"][i].as_py(), offset)


@dataclass
class Encoded:
    """The rows, and what happened to those that could not be used as they were."""

    rows: Rows
    bad: list[BadRow]
    truncated: int = 0
    dropped: int = 0
    split: int = 0
    trimmed: int = 0
    """Conversations that became several rows, or whose rows lack turns."""
    dropped_turns: list[dict[str, Any]] = field(default_factory=list)
    """A record for each row that lacks turns (data/window_rows.py)."""
    notes: dict[str, int] = field(default_factory=dict)
    """What objectives changed in rows (a message template), and in how many."""
    lost: dict[int, tuple[int | None, list[int]]] = field(default_factory=dict)
    """By source, the first row that lost tokens: its number (None: the row was dropped), and those token ids."""


def encode(
    examples: list[SourcedExample],
    objective: RowEncoder,
    processor: Processor,
    identity: str,
    max_length: int,
    overlong: str,
    progress: Any = lambda items, description: items,
    held_out: bool = False,
) -> Encoded:
    """Encode every example; from the cache if the same was encoded before.

    Args:
        identity: a hash of the tokenizer and the template.
        max_length: the longest row in tokens.
        overlong: error, truncate, drop, drop_turns, split, sliding_window, or each: what each task's objective does.
        held_out: the rows are to be measured on: of a conversation that is too long, context is not chosen by the answers.

    Raises:
        DataError: a row is too long and `overlong` is error, or nothing carries loss.
    """
    held_out = held_out and overlong == "drop_turns"  # all else is encoded alike
    key = fingerprint(examples, objective, identity, max_length, f"{overlong}, held out" if held_out else overlong)
    file = home() / "encoded" / f"{key}.arrow"
    record = file.with_suffix(".json")
    if not (file.exists() and record.exists()):
        maker, facts = RowMaker(objective, processor, max_length, overlong, held_out), Facts()
        items = iter(progress(examples, "encoding"))
        with RowFile(file) as out, closing(encoded_chunks(maker, items, len(examples))) as chunks:
            for table, of_chunk in chunks:
                facts.add(of_chunk, out.num_rows)
                out.write(table)
            record.write_text(json.dumps(asdict(facts), ensure_ascii=False), encoding="utf-8")
            out.finish()
    with pa.memory_map(str(file)) as source:
        stored = Rows(pa.ipc.open_file(source).read_all(), key, processor.feature_extractor)
    known = json.loads(record.read_text(encoding="utf-8"))
    bad = [BadRow(SourceLocation(**x["where"]), Message.from_json(x["reason"]), x["excerpt"]) for x in known.pop("bad")]
    if not stored.supervised.any():
        if not bad:
            raise DataError("data: no token carries loss, so there is nothing to train on")
        raise DataError(
            "data: no token carries loss, so there is nothing to train on. First bad row: {where}: {reason}",
            where=bad[0].where,
            reason=bad[0].reason,
        )
    lost = {int(source): (row, ids) for source, (row, ids) in known.pop("lost").items()}
    return Encoded(stored, bad, **known, lost=lost)


def fingerprint(
    examples: list[SourcedExample], objective: RowEncoder, identity: str, max_length: int, overlong: str
) -> str:
    """sha256 over everything that the encoded rows depend on."""
    version = [VERSION, "at structure"] if overlong in ("split", "each") else VERSION
    digest = hashlib.sha256(json.dumps([version, objective.as_recipe(), identity, max_length, overlong]).encode())
    encoder = json.JSONEncoder(default=_as_fields)
    with reading_in("en"):  # a place is a sentence: resuming in another language is the same data
        for x in examples:
            fields_of_row = [x.source, str(x.where), type(x.example).__name__, x.example, x.parse_special_tokens]
            digest.update(encoder.encode(fields_of_row).encode())
    return digest.hexdigest()[:32]


def _as_fields(example: Any) -> dict[str, Any]:
    """The fields of an Example or of a part of one, as `asdict` gives them; what is inside is asked for in turn."""
    return {name: getattr(example, name) for name in _field_names(type(example))}


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(x.name for x in fields(kind))


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _numbers(scalar: Any) -> Any:
    return scalar.values.to_numpy()
