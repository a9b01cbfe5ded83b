"""Examples -> encoded rows, kept as memory-mapped Arrow under a fingerprint of all that they depend on."""

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

from weitiao.core.batch import IGNORE, Row
from weitiao.core.errors import DataError
from weitiao.core.example import Audio, BadRow, SourcedExample, SourceLocation
from weitiao.core.files import home
from weitiao.core.objective import RowEncoder
from weitiao.core.processor import FeatureExtractor, Processor

VERSION = 4  # raised when the same inputs would be encoded differently
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("source", pa.int32()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("offset", pa.int64()),
        ("task", pa.string()),
        ("sound", pa.struct([("file", pa.string()), ("sha256", pa.string())])),
    ]
)


@dataclass
class Rows:
    """Encoded rows on disk. rows[i] reads one; lengths and supervised counts are at hand."""

    table: pa.Table
    fingerprint: str
    feature_extractor: FeatureExtractor | None = None
    """Of rows that are heard."""

    def __post_init__(self) -> None:
        self.lengths = _list_lengths(self.table["input_ids"])  # [rows]
        self.source = self.table["source"].to_numpy()  # [rows]
        tasks = self.table["task"]
        self.tasks: Sequence[str] = [] if tasks.null_count == len(tasks) else tasks.to_pylist()  # [rows], of several tasks
        self.supervised = np.array([int((_numbers(x) != IGNORE).sum()) for x in self.table["labels"]], np.int64)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Row:
        row = {"input_ids": _numbers(self.table["input_ids"][i]), "labels": _numbers(self.table["labels"][i])}
        named = self.table["sound"][i].as_py() if self.feature_extractor else None
        if self.feature_extractor and named:
            sound = Audio(**named)
            row |= {"sound": sound, "input_features": partial(self.feature_extractor.features, sound)}
        return {**row, "task": self.tasks[i]} if self.tasks else row  # pyright: ignore[reportReturnType]

    def of(self, task: str) -> "Rows":
        """The rows of one of several tasks, as if they were all."""
        if not task:
            return self
        mine = self.table.filter(pc.field("task") == task)
        alone = mine.set_column(mine.schema.get_field_index("task"), "task", pa.nulls(len(mine), pa.string()))
        return Rows(alone, self.fingerprint, self.feature_extractor)

    def where(self, i: int) -> SourceLocation:
        offset = self.table["offset"][i].as_py()
        return SourceLocation(self.table["file"][i].as_py(), self.table["line"][i].as_py(), offset)


@dataclass
class Encoded:
    """The rows, and what happened to those that were not taken as they were."""

    rows: Rows
    bad: list[BadRow]
    cut: int = 0
    dropped: int = 0
    split: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    """What objectives noted of rows, and of how many."""
    lost: dict[int, tuple[int | None, list[int]]] = field(default_factory=dict)
    """Of each source, the first row that lost something: its number (None where all was dropped), and the token ids that
    are gone. To be drawn."""


def encode(
    examples: list[SourcedExample],
    objective: RowEncoder,
    processor: Processor,
    identity: str,
    max_length: int,
    overlong: str,
    progress: Any = lambda items, words: items,
) -> Encoded:
    """Encode every example; from the cache if the same was encoded before.

    Args:
        identity: what the tokenizer and template are (a hash).
        context: longest row in tokens.
        overlong: refuse, cut (what the objective gives up), drop, split, window (pieces that overlap), or each: as each
            task's own objective would have it.

    Raises:
        DataError: a row is too long and `overlong` is refuse, or nothing carries loss.
    """
    key = fingerprint(examples, objective, identity, max_length, overlong)
    file = home() / "encoded" / f"{key}.arrow"
    record = file.with_suffix(".json")
    if not (file.exists() and record.exists()):
        found = _encode_all(progress(examples, "encoding"), objective, processor, max_length, overlong)
        _write(file, record, found)
    with pa.memory_map(str(file)) as source:
        rows = Rows(pa.ipc.open_file(source).read_all(), key, processor.feature_extractor)
    facts = json.loads(record.read_text())
    bad = [BadRow(SourceLocation(**x["where"]), x["reason"], x["excerpt"]) for x in facts.pop("bad")]
    if not len(rows) or not rows.supervised.sum():
        why = f" First complaint: {bad[0].where}: {bad[0].reason}" if bad else ""
        raise DataError(f"data: not a single token carries loss, so there is nothing to learn.{why}")
    lost = {int(source): (row, ids) for source, (row, ids) in facts.pop("lost").items()}
    return Encoded(rows, bad, **facts, lost=lost)


def fingerprint(
    examples: list[SourcedExample], objective: RowEncoder, identity: str, max_length: int, overlong: str
) -> str:
    """sha256 over all that the encoded rows depend on."""
    digest = hashlib.sha256(json.dumps([VERSION, objective.as_recipe(), identity, max_length, overlong]).encode())
    for x in examples:
        plain = [x.source, str(x.where), type(x.example).__name__, asdict(x.example)]
        digest.update(json.dumps(plain).encode())
    return digest.hexdigest()[:32]


def _encode_all(
    examples: Iterable[SourcedExample], objective: RowEncoder, processor: Processor, max_length: int, overlong: str
) -> tuple[list[dict], dict]:
    made: list[dict] = []
    facts: dict[str, Any] = {"bad": [], "cut": 0, "dropped": 0, "split": 0, "notes": {}, "lost": {}}
    for item in examples:
        try:
            for row in objective.rows(item.example, processor):
                for note in row.get("notes", ()):
                    facts["notes"][note] = facts["notes"].get(note, 0) + 1
                for piece in _fit(row, objective, max_length, overlong, item, facts, len(made)):
                    if any(label != IGNORE for label in piece["labels"]):
                        offset = item.where.offset
                        place = {"source": item.source, "file": item.where.file, "line": item.where.line, "offset": offset}
                        sound = {"sound": asdict(piece["sound"])} if "sound" in piece else {}  # pyright: ignore
                        made.append({**piece, **place, **sound})
                    elif overlong not in ("split", "sliding_window"):
                        facts["bad"].append(_bad(item, "no token of this row carries loss"))
        except ValueError as error:
            facts["bad"].append(_bad(item, str(error)))
    return made, facts


def _fit(
    row: Row, objective: RowEncoder, max_length: int, overlong: str, item: SourcedExample, facts: dict, number: int
) -> Iterator[Row]:
    """The row, as much of it as the context takes; `number` is what it will be called."""
    if overlong == "each":
        overlong = objective.overlong_of(row)
    length, ids = objective.num_positions(row), [int(x) for x in row["input_ids"]]
    if length <= max_length:
        yield row
    elif overlong == "error":
        raise DataError(
            f"{item.where}: this row has {length} tokens, the context is {max_length}. Write overlong: cut (its start goes, "
            "the answer's end stays), drop or split; or a larger context."
        )
    elif overlong == "drop":
        facts["dropped"] += 1
        facts["lost"].setdefault(item.source, (None, ids))
    elif overlong == "truncate":
        facts["cut"] += 1
        kept, lost = objective.cut(row, max_length)
        facts["lost"].setdefault(item.source, (number, lost))
        yield kept
    elif overlong == "sliding_window":
        facts["split"] += 1
        yield from objective.windows(row, max_length)
    else:
        facts["split"] += 1
        for at in range(0, len(ids), max_length):  # labels hold the next token already, so none is lost at the cut
            some = {key: row[key][at : at + max_length] for key in ("input_ids", "labels")}
            yield {**row, **some}  # pyright: ignore[reportReturnType]


def _bad(item: SourcedExample, reason: str) -> dict[str, Any]:
    where = {"file": item.where.file, "line": item.where.line, "offset": item.where.offset}
    return {"where": where, "reason": reason, "excerpt": item.example.full_text[:200]}


def _write(file: Path, record: Path, found: tuple[list[dict], dict]) -> None:
    made, facts = found
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_suffix(f".{os.getpid()}.tmp")
    with pa.OSFile(str(temp), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for at in range(0, len(made), 4096):
            writer.write_table(pa.Table.from_pylist(made[at : at + 4096], SCHEMA))
    record.write_text(json.dumps(facts, ensure_ascii=False))
    os.replace(temp, file)


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _numbers(scalar: Any) -> np.ndarray:
    return scalar.values.to_numpy()
