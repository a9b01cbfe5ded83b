"""Files -> batches of rows to be inspected, read as training would read them; rows that cannot be used are counted."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, message_of
from weitiao.core.example import BadRow, Example, SourceLocation
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.data.column_use import ColumnUse
from weitiao.data.columns import ColumnMapping, is_blank
from weitiao.data.file_kinds import check_json, check_kind
from weitiao.data.inspection.row_texts import RowTexts, texts_of
from weitiao.data.mapping import named_mapping
from weitiao.data.read import INFERENCE_ROWS, ROW_ERRORS, files_of, findings_of, reader_of
from weitiao.data.records import ExcludedRow, Reader, Record
from weitiao.data.unpacking import on_disk
from weitiao.pipeline.starter_recipe import choose_mapping

BATCH_ROWS, BATCH_CHARACTERS = 4096, 2_000_000
MAX_VALUES = 100  # of a column that divides the rows into tasks
TASK_COLUMNS = frozenset(
    {"task", "task_name", "task_type", "category", "source", "dataset", "domain", "topic", "type", "lang", "language",
     "任务", "类别", "来源", "领域", "类型", "语言"}
)  # fmt: skip
SHOWN_BAD = 5  # rows, of each kind of reason
EMPTY, SURROGATE = Message("the text is empty"), Message("the text has an unpaired surrogate, which is not a character")


@dataclass(frozen=True)
class Accepted:
    """A row that training would use."""

    where: SourceLocation
    example: Example
    texts: RowTexts


@dataclass
class BadCounts:
    """Rows that cannot be used, by the code of the reason."""

    codes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[BadRow]] = field(default_factory=dict)

    def add(self, row: BadRow) -> None:
        """Count a row."""
        self.codes[row.code] += 1
        if len(examples := self.examples.setdefault(row.code, [])) < SHOWN_BAD:
            examples.append(row)


@dataclass
class InspectedFile:
    """One file, and what reading it has shown so far."""

    path: Path
    source: Source
    objective: str = ""
    """One that trains on such rows."""
    use: ColumnUse | None = None
    accepted: int = 0
    bad: BadCounts = field(default_factory=BadCounts)
    findings: list[Finding] = field(default_factory=list)
    tasks: dict[str, Counter[str]] = field(default_factory=dict)
    """Column that divides the rows (task, source ...) -> its values and their rows."""

    def rows(self) -> Iterator[Accepted]:
        """The rows that can be used; the others are counted.

        Raises:
            DataError: the file is empty, no row can be used, or its columns fit no objective.
        """
        if on_disk(self.path).stat().st_size == 0:
            raise DataError("data: {file} is empty.", file=self.path)
        reader = reader_of(self.path, self.source)
        check_kind(self.path, reader)
        if self.source.format == "auto":
            check_json(self.path, reader)
        self.findings += findings_of(self.path, reader, self.source)
        items = iter(find_module(Reader, reader).read(self.path, self.source.encoding))
        head = list(itertools.islice(items, INFERENCE_ROWS))
        use = ColumnUse(
            str(self.path), self._mapping([x for x in head if isinstance(x, Record)], head), bool(self.source.columns)
        )
        self.use = use
        fields = {name for x in head if isinstance(x, Record) for name in x.fields}
        self.tasks = {x: Counter() for x in sorted(fields) if x not in use.mapping.reads and x.casefold() in TASK_COLUMNS}
        for item in itertools.chain(head, items):
            row = item if isinstance(item, BadRow) else _row(item, use)
            if isinstance(row, BadRow):
                self.bad.add(row)
            elif row is not None:
                self.accepted += 1
                if isinstance(item, Record) and self.tasks:
                    self._count_tasks(item)
                yield row

    def _count_tasks(self, record: Record) -> None:
        for name, counts in self.tasks.items():
            value = str(record.fields.get(name))
            if value in counts or len(counts) < MAX_VALUES:
                counts[value] += 1

    def _mapping(self, records: Sequence[Record], head: Sequence[Record | BadRow]) -> ColumnMapping:
        bad = next((x for x in head if isinstance(x, BadRow)), None)
        if not records and bad is not None:
            raise DataError(
                "data: {file} has no usable row. First error: line {line}: {reason}.",
                file=self.path,
                line=bad.where.line,
                reason=bad.reason,
            )
        if not records:
            raise DataError("data: {file} has no usable row.", file=self.path)
        if self.source.columns:
            self.objective = "columns"
            return named_mapping([x.fields for x in records], self.source.columns, str(self.path))
        try:
            chosen = choose_mapping(records, str(self.path), "")
        except DataError as error:
            raise DataError(
                "{problem} Or name them here: --columns text=COLUMN; --columns prompt=COLUMN --columns completion=COLUMN",
                problem=error.message,
            ) from None
        self.objective = chosen.objective
        return chosen.mapping

    def as_json(self) -> dict[str, Any]:
        """{file, columns, objective, rows, accepted, bad, excluded, codes}"""
        use = self.use
        excluded = use.excluded.total() if use else 0
        return {
            "file": str(self.path),
            "columns": use.mapping.description if use else "",
            "objective": self.objective,
            "rows": self.accepted + self.bad.codes.total() + excluded,
            "accepted": self.accepted,
            "bad": self.bad.codes.total(),
            "excluded": excluded,
            "codes": dict(self.bad.codes.most_common()),
            "tasks": {name: counts.most_common() for name, counts in self.tasks.items() if len(counts) < MAX_VALUES},
        }


def _row(record: Record, use: ColumnUse) -> Accepted | BadRow | None:
    """A row as training would have it; None for one that says of itself that it is not trained on."""
    if not use.count(record):
        return None
    try:
        example = use.mapping.to_example(record)
        texts = texts_of(example)
        if is_blank(texts.prompt) and is_blank(texts.answer):
            return BadRow(record.where, EMPTY)
        return Accepted(record.where, example, texts)
    except ExcludedRow:
        use.excluded[f"{use.mapping.reads[0]}[]"] += 1
        return None
    except ROW_ERRORS as error:
        return BadRow(record.where, message_of(error), str(record.fields)[:200])


def opened(sources: Iterable[Source]) -> list[InspectedFile]:
    """The files of all sources.

    Raises:
        DataError: there is no such file.
    """
    return [InspectedFile(path, source) for source in sources for path in files_of(source)]


def batches(file: InspectedFile) -> Iterator[list[Accepted]]:
    """The rows of a file, some at a time; those with half a surrogate pair are counted as bad."""
    batch: list[Accepted] = []
    characters = 0
    for row in file.rows():
        batch.append(row)
        characters += len(row.texts.prompt) + len(row.texts.answer)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield _encodable(batch, file)
            batch, characters = [], 0
    if batch:
        yield _encodable(batch, file)


def _encodable(batch: list[Accepted], file: InspectedFile) -> list[Accepted]:
    if _can_be_encoded("".join(y for x in batch for y in _strings(x.texts))):
        return batch
    good = [x for x in batch if _can_be_encoded("".join(_strings(x.texts)))]
    for x in batch:
        if x not in good:
            file.bad.add(BadRow(x.where, SURROGATE))
            file.accepted -= 1
    return good


def _strings(texts: RowTexts) -> tuple[str, ...]:
    return texts.prompt, texts.answer, texts.label, texts.more


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
