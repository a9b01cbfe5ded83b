"""A folder of cleaned rows, and the same files for each shard.

rows.jsonl          rows to train on: accepted as they were, or repaired
quarantine.jsonl    rows that were left out: file, line, offset, raw bytes, code, reason
duplicates.jsonl    rows that are there already, and of which row they are copies
audit.jsonl         every change, with the text as it was
places.npy          of each row of rows.jsonl: file, line, bytes, whether it was repaired
counts.json         rows in = accepted + repaired + quarantined + duplicate; bytes, for files of lines; written last
shards/             until they are joined
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.files import write_text
from weitiao.data.cleaning import RuleCounts

ROWS, QUARANTINE, DUPLICATES, AUDIT = "rows.jsonl", "quarantine.jsonl", "duplicates.jsonl", "audit.jsonl"
PLACES, COUNTS, SHARDS, REPORT = "places.npy", "counts.json", "shards", "report.html"
EXAMPLES = 5  # of each rule, for the report
STATUSES = ("accepted", "repaired", "quarantined", "duplicate")
PLACE = np.dtype([("file", "<i4"), ("line", "<i8"), ("bytes", "<i8"), ("repaired", "?")])


@dataclass
class Balance:
    """Rows and bytes by what became of them. Files whose rows are no lines have no bytes here."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*STATUSES, "blank"), 0))
    rows_in: int = 0
    bytes_in: int = 0

    def add(self, status: str, size: int) -> None:
        """Count one row, or one blank line."""
        self.bytes_in += size
        self.bytes[status] += size
        if status in self.rows:
            self.rows_in += 1
            self.rows[status] += 1

    def move(self, status: str, new: str, size: int) -> None:
        """One row has become something else."""
        for counts, n in ((self.rows, 1), (self.bytes, size)):
            counts[status] -= n
            counts[new] += n

    def merge(self, other: "Balance") -> None:
        """Add the counts of other rows."""
        for mine, theirs in ((self.rows, other.rows), (self.bytes, other.bytes)):
            for key, n in theirs.items():
                mine[key] += n
        self.rows_in += other.rows_in
        self.bytes_in += other.bytes_in

    def check(self, size: int) -> None:
        """Whether nothing was lost or counted twice.

        Args:
            size: bytes of the files whose rows are lines.

        Raises:
            DataError: a file was changed while it was read.
        """
        if (sum(self.rows.values()), sum(self.bytes.values()), self.bytes_in) != (self.rows_in, self.bytes_in, size):
            raise DataError(
                "the counts do not balance: {rows:,} of {rows_in:,} rows, {bytes:,} of {size:,} bytes. Was a file changed "
                "while it was read? Clean it again, into a new folder.",
                rows=sum(self.rows.values()),
                rows_in=self.rows_in,
                bytes=sum(self.bytes.values()),
                size=size,
            )

    def as_json(self) -> dict[str, Any]:
        return {"rows": {"in": self.rows_in, **self.rows}, "bytes": {"in": self.bytes_in, **self.bytes}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Balance":
        rows, sizes = dict(record["rows"]), dict(record["bytes"])
        rows_in, bytes_in = rows.pop("in"), sizes.pop("in")
        return cls(rows, sizes, rows_in, bytes_in)


class FolderWriter:
    """Writes the rows of a folder as they come; the counts are the mark that it is whole."""

    def __init__(self, folder: Path | None) -> None:
        """None: nothing is written, only counted."""
        self.folder, self.balance, self.rules = folder, Balance(), RuleCounts()
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._places: list[tuple[int, int, int, bool]] = []
        self._stack = ExitStack()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> "FolderWriter":
        if self.folder is None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (ROWS, QUARANTINE, AUDIT):
            file = open(self.folder / name, "w", encoding="utf-8", newline="\n")
            self._files[name] = self._stack.enter_context(file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        if kind is None and self.folder is not None:
            np.save(self.folder / PLACES, np.array(self._places, PLACE))

    def row(self, line: str, position: tuple[int, int], size: int, repaired: bool) -> None:
        """A row to train on, as a line of JSON."""
        self._write(ROWS, f"{line}\n")
        self._places.append((*position, size, repaired))
        self.balance.add("repaired" if repaired else "accepted", size)

    def quarantine(self, record: dict[str, Any], size: int) -> None:
        """A row that is left out."""
        self._write(QUARANTINE, json_line(record))
        self.balance.add("quarantined", size)

    def audit(self, record: dict[str, Any]) -> None:
        """A change; the first ones of each rule are examples."""
        self._write(AUDIT, json_line(record))
        visible = self.examples.setdefault(record["rule"], [])
        if len(visible) < EXAMPLES:
            visible.append(record)

    def _write(self, name: str, line: str) -> None:
        if self.folder is not None:
            self._files[name].write(line)

    def counts(self) -> dict[str, Any]:
        """Rows and bytes by what became of them, and what each rule did."""
        rules = {"rules": self.rules.as_json(), "rules_rows": self.rules.rows}
        return {**self.balance.as_json(), **rules, "examples": self.examples}


def json_line(value: Any) -> str:
    """A line of a .jsonl file; what JSON has no form for (dates) is written as text, half a surrogate pair as \\ud83d."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value, default=str)
    return line + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl file that this program wrote, or that a person has edited.

    Raises:
        DataError: a line is not JSON.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(
                        "{file}, line {line}: not JSON: {error}. Every line is one object.",
                        file=path,
                        line=number,
                        error=str(error),
                    ) from None


def read_counts(folder: Path) -> dict[str, Any] | None:
    """The counts of a folder; None if it is not whole."""
    path = folder / COUNTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_counts(folder: Path, counts: dict[str, Any]) -> None:
    """The counts, last of all."""
    write_text(folder / COUNTS, json.dumps(counts, ensure_ascii=False, indent=1) + "\n")


def load_places(folder: Path) -> np.ndarray:
    """Where each row of rows.jsonl comes from."""
    return np.load(folder / PLACES)
