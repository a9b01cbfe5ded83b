"""Examples -> encoded rows, stored as memory-mapped Arrow under a fingerprint of everything that they depend on."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from weitiao.core.batch import AnnotatedRow, Row, take_tokens
from weitiao.core.errors import DataError, message_of
from weitiao.core.example import Audio, BadRow, SourcedExample, SourceLocation
from weitiao.core.files import home
from weitiao.core.messages import Message
from weitiao.core.objective import RowEncoder
from weitiao.core.processor import FeatureExtractor, Processor

VERSION = 9  # raised when the same inputs would be encoded differently
TARGETS = ("targets", "token_targets")
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
CHUNK = 4096  # rows written at once
LITERAL = Message("rows that spell special tokens, which are encoded as text")
PARSED = Message("rows that spell special tokens, which become control tokens (parse_special_tokens)")


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
) -> Encoded:
    """Encode every example; from the cache if the same was encoded before.

    Args:
        identity: a hash of the tokenizer and the template.
        max_length: the longest row in tokens.
        overlong: error, truncate, drop, split, sliding_window, or each: what each task's objective does.

    Raises:
        DataError: a row is too long and `overlong` is error, or nothing carries loss.
    """
    key = fingerprint(examples, objective, identity, max_length, overlong)
    file = home() / "encoded" / f"{key}.arrow"
    record = file.with_suffix(".json")
    if not (file.exists() and record.exists()):
        rows, facts = _encode_all(progress(examples, "encoding"), objective, processor, max_length, overlong)
        _write(file, record, rows, facts)
    with pa.memory_map(str(file)) as source:
        stored = Rows(pa.ipc.open_file(source).read_all(), key, processor.feature_extractor)
    facts = json.loads(record.read_text(encoding="utf-8"))
    bad = [BadRow(SourceLocation(**x["where"]), Message.from_json(x["reason"]), x["excerpt"]) for x in facts.pop("bad")]
    if not stored.supervised.any():
        if not bad:
            raise DataError("data: no token carries loss, so there is nothing to train on")
        raise DataError(
            "data: no token carries loss, so there is nothing to train on. First bad row: {where}: {reason}",
            where=bad[0].where,
            reason=bad[0].reason,
        )
    lost = {int(source): (row, ids) for source, (row, ids) in facts.pop("lost").items()}
    return Encoded(stored, bad, **facts, lost=lost)


def fingerprint(
    examples: list[SourcedExample], objective: RowEncoder, identity: str, max_length: int, overlong: str
) -> str:
    """sha256 over everything that the encoded rows depend on."""
    digest = hashlib.sha256(json.dumps([VERSION, objective.as_recipe(), identity, max_length, overlong]).encode())
    for x in examples:
        name, text = type(x.example).__name__, asdict(x.example)
        fields = [x.source, str(x.where), name, text, x.parse_special_tokens]
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()[:32]


def _encode_all(
    examples: Iterable[SourcedExample], objective: RowEncoder, processor: Processor, max_length: int, overlong: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"bad": [], "truncated": 0, "dropped": 0, "split": 0, "notes": {}, "lost": {}}
    for item in examples:
        try:
            if processor.contains_special_tokens(item.example.full_text):
                note = PARSED if item.parse_special_tokens else LITERAL
                facts["notes"][note.template] = facts["notes"].get(note.template, 0) + 1
            own = processor.parsing_special_tokens if item.parse_special_tokens else processor
            for row in objective.rows(item.example, own):
                for note in row.get("notes", ()):
                    facts["notes"][note.template] = facts["notes"].get(note.template, 0) + 1
                for piece in _fit(row, objective, max_length, overlong, item, facts, len(rows)):
                    if num_targets := objective.num_targets(piece):
                        rows.append(_stored(piece, num_targets, item))
                    elif overlong not in ("split", "sliding_window"):
                        facts["bad"].append(_bad(item, Message("no token of this row carries loss")))
        except ValueError as error:
            facts["bad"].append(_bad(item, message_of(error)))
    return rows, facts


def _fit(
    row: Row,
    objective: RowEncoder,
    max_length: int,
    overlong: str,
    item: SourcedExample,
    facts: dict[str, Any],
    number: int,
) -> Iterator[Row]:
    """The row, or what fits of it.

    Args:
        facts: counts what is lost.
        number: of the row among those that are stored.
    """
    if overlong == "each":
        overlong = objective.overlong_of(row)
    length, ids = objective.num_positions(row), [int(x) for x in row["input_ids"]]
    if length <= max_length:
        yield row
    elif overlong == "error":
        raise DataError(
            "{where}: this row has {length} tokens, but max_length is {max_length}. Set overlong: truncate (the end of "
            "the answer stays), drop or split; or a larger max_length",
            where=item.where,
            length=length,
            max_length=max_length,
        )
    elif overlong == "drop":
        facts["dropped"] += 1
        facts["lost"].setdefault(item.source, (None, ids))
    elif overlong == "truncate":
        facts["truncated"] += 1
        short, lost = objective.cut(row, max_length)
        facts["lost"].setdefault(item.source, (number, lost))
        yield short
    elif overlong == "sliding_window":
        facts["split"] += 1
        yield from objective.windows(row, max_length)
    else:
        facts["split"] += 1
        for start in range(0, len(ids), max_length):  # labels already hold the next token, so none is lost at a cut
            yield take_tokens(row, range(start, min(start + max_length, len(ids))))


def _stored(row: Row, num_targets: int, item: SourcedExample) -> dict[str, Any]:
    """A row as the columns of the table."""
    location = {"file": item.where.file, "line": item.where.line, "offset": item.where.offset}
    audio = {"audio": asdict(row["audio"])} if "audio" in row else {}
    targets = {f"{kind}.{name}": x for kind in TARGETS for name, x in row.get(kind, {}).items()}
    own = {key: row[key] for key in ("input_ids", "labels")}
    return {
        **own,
        "task": row.get("task"),
        "num_targets": num_targets,
        "source": item.source,
        **location,
        **audio,
        **targets,
    }


def _bad(item: SourcedExample, reason: Message) -> dict[str, Any]:
    where = {"file": item.where.file, "line": item.where.line, "offset": item.where.offset}
    return {"where": where, "reason": reason.as_json(), "excerpt": item.example.full_text[:200]}


def _write(file: Path, record: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    examples = {key: value for row in rows for key, value in row.items() if "." in key}
    schema = pa.schema([*COLUMNS, *((key, _arrow_type(value)) for key, value in sorted(examples.items()))])
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_suffix(f".{os.getpid()}.tmp")
    with pa.OSFile(str(temp), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(rows), CHUNK):
            writer.write_table(pa.Table.from_pylist(rows[start : start + CHUNK], schema))
    record.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    os.replace(temp, file)


def _arrow_type(target: Any) -> pa.DataType:
    array = np.asarray(target)
    number = pa.float32() if array.dtype.kind == "f" else pa.int32()
    return pa.list_(number) if array.ndim else number


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _numbers(scalar: Any) -> Any:
    return scalar.values.to_numpy()
