"""Files -> Examples. An unusable row is set aside with its file, line, byte offset and the reason; the others are used."""

import functools
import gc
import glob
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, InvalidValue, message_of
from weitiao.core.example import (
    EVALUATION_COLUMNS,
    BadRow,
    SourcedExample,
    Task,
    TextLabel,
    TokenTags,
)
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module, names
from weitiao.data.character_offsets import check_offsets
from weitiao.data.cleaning import FileCleaning
from weitiao.data.column_use import ColumnUse
from weitiao.data.columns import is_blank, is_empty
from weitiao.data.encodings import encoding_of
from weitiao.data.file_kinds import check_json, check_kind
from weitiao.data.hub import dataset_files, is_hub_id
from weitiao.data.label_checks import check_limit
from weitiao.data.mapping import find_mapping
from weitiao.data.records import ExcludedRow, Reader, Record
from weitiao.data.unpacking import ending_of, holds_rows, in_archive, is_archive, members, on_disk

CLEANED_FOLDER = ("rows.jsonl", "counts.json", "quarantine.jsonl")  # of weitiao data clean; the first are its rows
INFERENCE_ROWS = 50  # first records, from which the mapping is inferred
BINARY = ("arrow", "parquet", "pdf")  # formats that have no encoding
NO_CELLS: dict[str, str] = {}  # of nearly all rows
ROW_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)  # a bad row, not the end of the run


@dataclass
class Reading:
    """The examples of all sources."""

    examples: list[SourcedExample] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    columns: list[ColumnUse] = field(default_factory=list)
    """Which columns of each file are read, and what the others hold."""
    checks: list[Finding] = field(default_factory=list)
    """What `limit` leaves out, and how offsets were counted."""
    cleaned: list[FileCleaning] = field(default_factory=list)
    """What the cleaners did, for each file of a source that has some."""

    @property
    def mappings(self) -> dict[str, str]:
        """File -> description of its mapping."""
        return {x.file: x.mapping.description for x in self.columns}

    def findings(self) -> list[Finding]:
        """Columns that are not read, and the checks of each file."""
        of_files = (finding for x in (*self.columns, *self.cleaned) for finding in x.findings())
        return [*of_files, *self.checks]


def read_sources(
    sources: Iterable[Source],
    objective: Objective,
    max_bad_fraction: float,
    earlier: Collection[str] = (),
    example_type: type | None = None,
) -> Reading:
    """Read every source.

    Args:
        objective: the Example that it trains on decides how columns are read.
        max_bad_fraction: more unusable rows than this are an error.
        earlier: descriptions of the mappings that training files had: these come before others that fit.
        example_type: what the rows are, where that is not what the objective trains on.

    Raises:
        DataError: a file is missing, empty or of the wrong format, or too many rows are bad.
        RecipeError: a source names no task of several, or one that does not exist.
    """
    reading = Reading()
    for number, source in enumerate(sources):
        for file in files_of(source):
            kind = example_type or objective.part(source.task).traits.example_type
            with _uncollected():
                _read_file(file, source, number, kind, reading, earlier)
    check_bad_fraction(reading.bad, len(reading.bad) + len(reading.examples), max_bad_fraction)
    if not reading.examples and reading.bad:
        first = reading.bad[0]
        raise DataError("data: no row can be used. First: {where}: {reason}", where=first.where, reason=first.reason)
    if not reading.examples and (left_out := sum(sum(x.counts.left_out.values()) for x in reading.cleaned)):
        raise DataError("data: the cleaners leave out all {n:,} rows.", n=left_out)
    if not reading.examples and (excluded := sum(x.excluded.total() for x in reading.columns)):
        raise DataError("data: all {n:,} rows are marked as not to be trained on.", n=excluded)
    if not reading.examples:
        raise DataError("data: there is no row to train on.")
    return reading


def files_of(source: Source) -> list[Path]:
    """The files of a source, in a fixed order.

    Raises:
        DataError: there are none.
    """
    if is_hub_id(source.path):
        return dataset_files(source)
    path, endings = Path(source.path).expanduser(), file_endings()
    if path.is_file() or in_archive(path):
        files = [path]
    elif path.is_dir() and all((path / name).is_file() for name in CLEANED_FOLDER):
        files = [path / CLEANED_FOLDER[0]]  # not its quarantine.jsonl
    elif path.is_dir():
        files = sorted(x for x in path.iterdir() if ending_of(x) in endings or holds_rows(x, endings))
    else:
        files = [Path(x) for x in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise DataError("data: there is no file {path}.", path=source.path)
    return [x for file in files for x in (members(file, endings) if file.is_file() and is_archive(file) else [file])]


def refuse_to_overwrite(written: Iterable[Path], sources: Iterable[Source]) -> None:
    """Whether a file that is to be written is one that is read.

    Raises:
        DataError: it is.
    """
    files = [on_disk(file) for source in sources for file in files_of(source)]
    for new in written:
        if new.exists() and any(file.exists() and file.samefile(new) for file in files):
            raise DataError("--out: {file} is read, and would be overwritten. Name another.", file=new)


def reader_of(file: Path, source: Source) -> str:
    """The name of the reader for a file: the source's `format`, or by the file name's ending.

    Raises:
        DataError: no reader has this ending.
        RecipeError: there is no such format.
    """
    if source.format != "auto":
        find_module(Reader, source.format)
        return source.format
    able = [name for name in names(Reader) if ending_of(file) in find_module(Reader, name).ENDINGS]
    looks_like = {name: getattr(find_module(Reader, name), "looks_like", None) for name in able}
    for name in sorted(able, key=lambda name: looks_like[name] is None):
        check = looks_like[name]
        if check is None or check(file):
            return name
    check_kind(file, "")
    raise DataError(
        "data: no reader for the file name ending of {file}; known are {known}. Or set the format, as in format: jsonl.",
        file=file,
        known=", ".join(sorted(file_endings())),
    )


def findings_of(file: Path, reader: str, source: Source) -> list[Finding]:
    """What was decided or lost when a file is read: its encoding, digits that Excel dropped, footnotes ..."""
    own = getattr(find_module(Reader, reader), "findings", None)
    if own is not None:
        return list(own(file))
    return list(encoding_of(file).findings(file)) if source.encoding == "auto" and reader not in BINARY else []


def file_endings() -> set[str]:
    """The file name endings that a reader knows."""
    return {ending for name in names(Reader) for ending in find_module(Reader, name).ENDINGS}


def _read_file(
    file: Path, source: Source, number: int, example_type: type, reading: Reading, earlier: Collection[str]
) -> None:
    if on_disk(file).stat().st_size == 0:
        raise DataError("data: {file} is empty.", file=file)
    reader = reader_of(file, source)
    check_kind(file, reader)
    if source.format == "auto":
        check_json(file, reader)
    reading.checks += findings_of(file, reader, source)
    items = iter(find_module(Reader, reader).read(file, source.encoding))
    head = list(itertools.islice(items, INFERENCE_ROWS))
    records = [x.fields for x in head if isinstance(x, Record)]
    if not records:
        bad = [x for x in itertools.chain(head, items) if isinstance(x, BadRow)]
        reading.bad += bad
        if not bad:
            raise DataError("data: {file} has no usable row.", file=file)
        raise DataError(
            "data: {file} has no usable row. First error: line {line}: {reason}.",
            file=file,
            line=bad[0].where.line,
            reason=bad[0].reason,
        )
    mapping = find_mapping(records, example_type, source.columns, str(file), earlier)
    use = ColumnUse(str(file), mapping, source.columns is not None)
    reading.columns.append(use)
    chained = itertools.chain(head, items)
    if source.cleaners:
        cleaning = FileCleaning(str(file), source.cleaners, mapping)
        reading.cleaned.append(cleaning)
        chained = cleaning.rows(chained)
    rows = _examples(chained, use, number, source)
    first, first_bad = len(reading.examples), len(reading.bad)
    for item in itertools.islice(rows, source.limit):
        if isinstance(item, BadRow):
            reading.bad.append(item)
        else:
            reading.examples.append(item)
    reading.checks += check_offsets(str(file), reading.bad[first_bad:])
    if source.limit is not None and mapping.example_type in (TextLabel, TokenTags):
        used = [x.without_task.example for x in reading.examples[first:]]
        untasked = source.model_copy(update={"task": ""})
        behind = _examples(chained, ColumnUse(str(file), mapping, True), number, untasked)
        reading.checks += check_limit(str(file), used, (x.example for x in behind if isinstance(x, SourcedExample)))


def _examples(
    items: Iterable[Record | BadRow], use: ColumnUse, number: int, source: Source
) -> Iterator[SourcedExample | BadRow]:
    for item in items:
        if isinstance(item, BadRow):
            yield item
            continue
        if not use.count(item):
            continue
        try:
            example = use.mapping.to_example(item)
            text = example.full_text
            _check_characters(example)
            if is_blank(text):
                raise InvalidValue("the text is empty")
            example = Task(source.task, example) if source.task else example
            extra = for_evaluation(item.fields)
            yield SourcedExample(example, item.where, number, source.parse_special_tokens, extra)
        except UnicodeEncodeError:
            yield BadRow(item.where, Message("the text has an unpaired surrogate, which is not a character"))
        except ExcludedRow:
            use.excluded[f"{use.mapping.reads[0]}[]"] += 1
        except ROW_ERRORS as error:
            yield BadRow(item.where, message_of(error), str(item.fields)[:200])


def _check_characters(value: Any) -> None:
    """Check every text in an Example.

    Raises:
        UnicodeEncodeError: it has an unpaired surrogate.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode("utf-8")
    elif isinstance(value, tuple):
        if value and not isinstance(value[0], tuple):  # places in a text, not texts
            for x in value:
                _check_characters(x)
    else:
        for name in _field_names(type(value)):
            _check_characters(getattr(value, name))


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(x.name for x in fields(kind)) if is_dataclass(kind) else ()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles: examples have none, and it would look at all of them again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_bad_fraction(bad: Sequence[BadRow], total: int, max_bad_fraction: float) -> None:
    """Stop if more than the allowed fraction of the rows is unusable.

    Raises:
        TooManyBadRows: naming the first.
    """
    if len(bad) > max_bad_fraction * total:
        raise TooManyBadRows(
            "data: {n} of {total} rows cannot be used ({fraction:.1%}, and max_bad_fraction is {allowed:g}). "
            "First: {where}: {reason}",
            list(bad),
            n=len(bad),
            total=total,
            fraction=len(bad) / total,
            allowed=max_bad_fraction,
            where=bad[0].where,
            reason=bad[0].reason,
        )


class TooManyBadRows(DataError):
    """Carries the rows, so that they can be written to the Run before it stops."""

    def __init__(self, template: str, bad: list[BadRow], **fields: Any) -> None:
        super().__init__(template, **fields)
        self.bad = bad


def for_evaluation(fields: dict[str, Any]) -> dict[str, str]:
    """The cells of EVALUATION_COLUMNS that hold something, as text: lists of tests joined by lines, schemas as JSON."""
    if fields.keys().isdisjoint(EVALUATION_COLUMNS):
        return NO_CELLS
    cells = {name: fields[name] for name in EVALUATION_COLUMNS if not is_empty(fields.get(name))}
    return {name: _as_text(cell) for name, cell in cells.items()}


def _as_text(cell: Any) -> str:
    if isinstance(cell, list) and all(isinstance(x, str) for x in cell):
        return "\n".join(cell)
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
