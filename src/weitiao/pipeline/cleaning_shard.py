"""One shard: its rows through the rules, into a folder of its own that is there as a whole or not at all."""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weitiao.core.errors import message_of
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.core.registry import find_module
from weitiao.data.cleaning import clean_row
from weitiao.data.columns import is_blank
from weitiao.data.line_ranges import Line, lines_between
from weitiao.data.read import ROW_ERRORS
from weitiao.data.records import ExcludedRow, Reader, Record
from weitiao.pipeline.cleaned_folder import SHARDS, FolderWriter, json_line, read_counts, write_counts
from weitiao.pipeline.cleaning_plan import CleaningPlan, CleaningRequest, PlannedFile, make_plan

EMPTY, SURROGATE = Message("the text is empty"), Message("the text has an unpaired surrogate, which is not a character")


def shard_folder(out: Path, number: int, shards: int) -> Path:
    """The folder of a shard, counted from 1."""
    return out / SHARDS / f"{number:05}-of-{shards:05}"


def clean_shard(request: CleaningRequest, out: Path, number: int, shards: int) -> bool:
    """Clean one shard, unless that is done already: what other processes run.

    Returns:
        Whether there was something to do.

    Raises:
        DataError: the files cannot be read.
    """
    plan = make_plan(request)
    folder = shard_folder(out, number, shards)
    counts = read_counts(folder)
    if counts is not None and counts["identity"] == plan.identity:
        return False
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with FolderWriter(temporary) as writer:
        write_rows(plan, plan.shard(number, shards), writer)
    write_counts(temporary, {**plan.as_json(), **writer.counts()})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return True


def write_rows(plan: CleaningPlan, stretch: tuple[int, int], writer: FolderWriter) -> None:
    """Every row of a stretch of the files' bytes ends in one of the folder's files."""
    for number, file in enumerate(plan.files):
        for line in _lines(file, stretch):
            size = len(line.raw) if file.by_line else 0
            if line.item is None:
                writer.balance.add("blank", size)
            elif isinstance(line.item, BadRow):
                bad = line.item
                writer.quarantine(quarantined(bad.where, line.raw, None, bad.code, bad.reason), size)
            else:
                _write_record(file, number, line, line.item, writer, size)


def _write_record(file: PlannedFile, number: int, line: Line, record: Record, writer: FolderWriter, size: int) -> None:
    where = record.where
    row = clean_row(record.fields, file.mapping, file.cleaners)
    writer.rules.add(row)
    for change in row.audit(where):
        writer.audit(change)
    raw, fields = (line.raw, None) if file.by_line else (b"", record.fields)
    refusal = row.refusal or unusable(file, Record(where, row.fields))
    if refusal is not None:
        writer.quarantine(quarantined(where, raw, fields, *refusal), size)
        return
    text = None if row.changes or not file.by_line else _as_utf8(line.raw)
    unchanged = text is not None and text.endswith("}")  # no comma behind it
    written = text if unchanged and text else json_line(row.fields).rstrip("\n")
    writer.row(written, (number, where.line), size, bool(row.changes))


def _lines(file: PlannedFile, stretch: tuple[int, int]) -> Iterator[Line]:
    """The rows of a file that belong to a stretch of all bytes."""
    start, end = stretch[0] - file.start, stretch[1] - file.start
    if file.by_line:
        if start < file.size and end > 0:
            yield from lines_between(file.path, file.encoding, max(start, 0), min(end, file.size))
    elif start <= 0 < end:
        for item in find_module(Reader, file.reader).read(file.path, file.encoding):
            yield Line(b"", item)


def unusable(file: PlannedFile, record: Record) -> tuple[str, Message] | None:
    """Why a row makes no example: (code, reason); None: it does."""
    try:
        text = file.mapping.make(record.fields).full_text
        text.encode("utf-8")
        return ("row", EMPTY) if is_blank(text) else None
    except ExcludedRow:
        return None  # it says itself that it is not trained on: training leaves it out and counts it
    except UnicodeEncodeError:
        return "row", SURROGATE
    except ROW_ERRORS as error:
        return "row", message_of(error)


def quarantined(
    where: SourceLocation, raw: bytes, fields: Mapping[str, Any] | None, code: str, reason: Message
) -> dict[str, Any]:
    """The record of a row that is left out; of a line its bytes, of a row of a table its columns."""
    record: dict[str, Any] = {"file": where.file, "line": where.line, "offset": where.offset}
    if fields is not None:
        record["row"] = fields
    elif raw:
        text = _as_utf8(raw)
        record |= {"raw": text} if text is not None else {"raw_base64": base64.b64encode(raw).decode()}
        record["bytes"] = len(raw)
    return {**record, "code": code, "reason": str(reason), "as_found": fingerprint(record)}


def fingerprint(record: Mapping[str, Any]) -> str:
    """Tells whether somebody has mended the row of a quarantine record."""
    content = [record.get("raw"), record.get("raw_base64"), record.get("row")]
    return hashlib.sha256(json_line(content).encode()).hexdigest()[:12]


def _as_utf8(raw: bytes) -> str | None:
    """A line as text without its end; None if it is not plain UTF-8."""
    try:
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return None
    return text
