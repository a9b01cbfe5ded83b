"""`weitiao data repair`: rows that somebody has mended in quarantine.jsonl go back to where they were.

A record is mended if its `raw` (or, of a table, its `row`) is no longer what was found; or `"keep": true` says that the row
is right as it is, whatever a rule says. A mended row passes the rules again; one that still cannot be used stays, with the
new reason.
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.data.cleaning import clean_row
from weitiao.data.line_ranges import row_of
from weitiao.data.records import Record, TextDecoder
from weitiao.pipeline.cleaned_folder import (
    PLACE,
    PLACES,
    QUARANTINE,
    REPORT,
    ROWS,
    Balance,
    json_line,
    load_places,
    read_counts,
    read_lines,
    write_counts,
)
from weitiao.pipeline.cleaning_plan import CleaningPlan, CleaningRequest, PlannedFile, make_plan
from weitiao.pipeline.cleaning_report import cleaning_report
from weitiao.pipeline.cleaning_shard import fingerprint, unusable


@dataclass(frozen=True)
class Repaired:
    """What became of the records."""

    back: int
    """Rows that are back in rows.jsonl."""
    refused: tuple[str, ...]
    """Mended rows that still cannot be used: where, and why."""
    untouched: int
    """Records that nobody has changed."""


def repair(folder: Path) -> Repaired:
    """Put mended rows back in place.

    Raises:
        DataError: the folder is not whole, quarantine.jsonl is no longer JSON, or the counts would not balance.
    """
    counts = read_counts(folder)
    if counts is None:
        raise DataError("{folder} is no folder that weitiao data clean has finished.", folder=folder)
    plan = make_plan(CleaningRequest(tuple(counts["request"]["sources"]), counts["request"]["objective"]))
    numbers = {str(x.path): i for i, x in enumerate(plan.files)}
    remaining: list[dict[str, Any]] = []
    back: list[tuple[tuple[int, int], str, int]] = []
    refused: list[str] = []
    balance = Balance.from_json(counts)
    untouched = 0
    for record in read_lines(folder / QUARANTINE):
        if not record.get("keep") and fingerprint(record) == record.get("as_found"):
            remaining.append(record)
            untouched += 1
            continue
        number = numbers.get(str(record.get("file")))
        if number is None:
            raise DataError("{folder}: {file} is none of its files.", folder=folder, file=str(record.get("file")))
        line = _mended(record, plan.files[number])
        if isinstance(line, BadRow):
            refused.append(str(Message("{where}: {reason}", where=line.where, reason=line.reason)))
            remaining.append({**record, "code": line.code, "reason": str(line.reason)})
            continue
        size = record.get("bytes", 0) if plan.files[number].by_line else 0
        back.append(((number, record["line"]), line, size))
        balance.move("quarantined", "repaired", size)
    if back or refused:
        _write(folder, plan, counts, balance, back, remaining)
    return Repaired(len(back), tuple(refused), untouched)


def _mended(record: Mapping[str, Any], file: PlannedFile) -> str | BadRow:
    """The row as a line of rows.jsonl, behind the rules; a bad row, if it cannot be used."""
    where = SourceLocation(str(record["file"]), int(record["line"]), record.get("offset"))
    item: Record | BadRow | None
    if "row" in record:
        item = Record(where, dict(record["row"]))
    elif "raw" in record:
        text = record["raw"] if isinstance(record["raw"], str) else json.dumps(record["raw"], ensure_ascii=False)
        decoder = TextDecoder(file.path, "utf-8")
        item = row_of(text.replace("\n", " ").encode(), where, decoder)
    else:
        item = row_of(base64.b64decode(record.get("raw_base64", "")), where, TextDecoder(file.path, file.encoding))
    if item is None:
        return BadRow(where, Message("the row is empty"), code="row")
    if isinstance(item, BadRow):
        return item
    fields = item.fields
    if not record.get("keep"):
        row = clean_row(fields, file.mapping, file.cleaners)
        if row.refusal is not None:
            return BadRow(where, row.refusal[1], code=row.refusal[0])
        fields = row.fields
    problem = unusable(file, Record(where, fields))
    return json_line(fields) if problem is None else BadRow(where, problem[1], code=problem[0])


def _write(
    folder: Path,
    plan: CleaningPlan,
    counts: dict[str, Any],
    balance: Balance,
    back: list[tuple[tuple[int, int], str, int]],
    remaining: list[dict[str, Any]],
) -> None:
    """The folder with these rows in it; every file is replaced as a whole."""
    balance.check(sum(x.size for x in plan.files if x.by_line))
    positions = load_places(folder)
    keys = np.concatenate([positions, np.array([(*position, size, True) for position, _, size in back], PLACE)])
    order = np.lexsort((keys["line"], keys["file"]))
    rows, new_places = (folder / f".{os.getpid()}.{name}" for name in (ROWS, PLACES))
    with open(folder / ROWS, encoding="utf-8", newline="\n") as old, open(rows, "w", encoding="utf-8", newline="\n") as new:
        for i in order:
            new.write(old.readline() if i < len(positions) else back[i - len(positions)][1])
    np.save(new_places, keys[order])
    os.replace(rows, folder / ROWS)
    os.replace(new_places, folder / PLACES)
    write_text(folder / QUARANTINE, "".join(json_line(quarantined_again(x)) for x in remaining))
    new_counts = {**counts, **balance.as_json()}
    write_text(folder / REPORT, cleaning_report(new_counts))
    write_counts(folder, new_counts)


def quarantined_again(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose row stays: as it is now is how it was found."""
    return {**record, "as_found": fingerprint(record)}
