"""What is to be cleaned: files, the mapping of their columns, their rules, and how they are cut into shards.

All files stand behind one another as one row of bytes, which is cut into equal stretches. A row belongs to the stretch in
which it begins; a file that cannot be cut (a table, a compressed file, a document) belongs as a whole to the one in which
it begins. So any number of shards, done in any order, gives the same rows in the same order.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weitiao.core.cleaner import Cleaner
from weitiao.core.errors import DataError
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module
from weitiao.data.cleaning import check_cleaners
from weitiao.data.columns import ColumnMapping
from weitiao.data.file_kinds import check_kind
from weitiao.data.line_ranges import is_splittable
from weitiao.data.mapping import find_mapping, named_mapping
from weitiao.data.read import INFERENCE_ROWS, files_of, reader_of
from weitiao.data.records import Reader, Record
from weitiao.data.unpacking import on_disk
from weitiao.pipeline.starter_recipe import choose_mapping

SAMPLE = 1 << 16  # bytes at both ends of a file that tell it from another one of its size


@dataclass(frozen=True)
class CleaningRequest:
    """What a command was asked for, in plain values, so that other processes can be told."""

    sources: tuple[dict[str, Any], ...]
    """Settings of the sources, cleaners included."""
    objective: dict[str, Any] | None
    """The recipe's objective; None: by the columns."""

    @classmethod
    def of(cls, sources: Sequence[Source], objective: Objective | None) -> "CleaningRequest":
        plain = objective.as_recipe() if objective is not None else None
        return cls(tuple(x.model_dump(mode="json") for x in sources), plain)


@dataclass(frozen=True)
class PlannedFile:
    """One file to be cleaned."""

    path: Path
    reader: str
    encoding: str
    mapping: ColumnMapping
    cleaners: tuple[Cleaner, ...]
    start: int
    """Where it begins in the row of all bytes."""
    size: int
    """Bytes on disk."""
    by_line: bool
    """Its rows are lines, so that it can be cut, and its bytes balance."""


@dataclass(frozen=True)
class CleaningPlan:
    """All files, in their order."""

    files: tuple[PlannedFile, ...]
    request: CleaningRequest
    identity: str
    """Changes with the files, the rules, their settings and versions."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(x.size for x in self.files)

    @property
    def cleaners(self) -> list[str]:
        """The names of the rules, in their order."""
        return list(dict.fromkeys(y.name for x in self.files for y in x.cleaners))

    def as_json(self) -> dict[str, Any]:
        """What the counts of a folder say of it."""
        files = [{"file": str(x.path), "size": x.size, "by_line": x.by_line} for x in self.files]
        cleaners = {json.dumps(y.identity()): y.identity() for x in self.files for y in x.cleaners}
        columns = self.files[0].mapping.description
        return {
            "identity": self.identity,
            "request": asdict(self.request),
            "columns": columns,
            "files": files,
            "cleaners": list(cleaners.values()),
        }

    def shard(self, number: int, shards: int) -> tuple[int, int]:
        """The bytes [start, end) of a shard, counted from 1."""
        return self.size * (number - 1) // shards, self.size * number // shards


def make_plan(request: CleaningRequest) -> CleaningPlan:
    """The plan of a request: the same in every process.

    Raises:
        DataError: there is no such file, its columns fit no objective or differ, or a rule cannot work on it.
        RecipeError: a package that a rule needs is not installed.
    """
    objective = _objective(request.objective)
    files: list[PlannedFile] = []
    start = 0
    for source in (Source(**x) for x in request.sources):
        for path in files_of(source):
            size = on_disk(path).stat().st_size
            if size == 0:
                raise DataError("data: {file} is empty.", file=path)
            reader = reader_of(path, source)
            check_kind(path, reader)
            mapping = _mapping(path, reader, source, objective)
            check_cleaners(source.cleaners, mapping, str(path))
            by_line = reader == "jsonl" and is_splittable(path, source.encoding)
            files.append(PlannedFile(path, reader, source.encoding, mapping, source.cleaners, start, size, by_line))
            start += size
    refuse_other_columns(files)
    return CleaningPlan(tuple(files), request, _identity(request, files))


def refuse_other_columns(files: Sequence[PlannedFile]) -> None:
    """One folder holds rows of one kind.

    Raises:
        DataError: two files have other columns.
    """
    first = files[0]
    for other in files[1:]:
        if other.mapping.description != first.mapping.description:
            raise DataError(
                "{file} is read as {columns}, {other} as {other_columns}: rows of one folder have the same columns. Clean "
                "them into a folder each.",
                file=first.path,
                columns=first.mapping.description,
                other=other.path,
                other_columns=other.mapping.description,
            )


def _objective(plain: Mapping[str, Any] | None) -> Objective | None:
    if plain is None:
        return None
    settings = {key: x for key, x in plain.items() if key != "name"}
    return create(Objective, plain["name"], **settings)


def _mapping(path: Path, reader: str, source: Source, objective: Objective | None) -> ColumnMapping:
    items = find_module(Reader, reader).read(path, source.encoding)
    head = [x for x in itertools.islice(items, INFERENCE_ROWS) if isinstance(x, Record)]
    if not head:
        raise DataError("data: {file} has no usable row.", file=path)
    rows = [x.fields for x in head]
    if objective is None and source.columns:
        return named_mapping(rows, source.columns, str(path))
    if objective is None:
        return choose_mapping(head, str(path), "").mapping
    example_type = objective.part(source.task).traits.example_type
    return find_mapping(rows, example_type, source.columns, str(path))


def _identity(request: CleaningRequest, files: Sequence[PlannedFile]) -> str:
    """Of settings and of what the files are: their sizes and ends, not the times of their changes, which copies lose."""
    facts: list[Any] = [request.objective]
    for x in files:
        rules = [y.identity() for y in x.cleaners]
        facts.append([str(x.path), x.reader, x.encoding, x.mapping.description, rules, x.size, _ends(on_disk(x.path))])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _ends(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(SAMPLE)
        file.seek(max(0, path.stat().st_size - SAMPLE))
        return hashlib.sha256(head + file.read(SAMPLE)).hexdigest()[:16]
