"""What an inspection found as one record: for the terminal, the page and --json. Texts of rows are short and masked."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.intervals import wilson
from weitiao.core.messages import Message
from weitiao.data.inspection.advice import LEVELS, Advice, Findings, combined_command
from weitiao.data.inspection.advice_rules import advice
from weitiao.data.inspection.excerpts import end_of, excerpt
from weitiao.data.inspection.occurrences import EXAMPLES, LISTED, Occurrences
from weitiao.evaluate.report.inspection_report import write_inspection_report
from weitiao.pipeline.inspect import Inspection
from weitiao.pipeline.inspection_rows import Accepted

SHOWN_LABEL = 40  # characters of a label


def inspection_record(found: Inspection) -> dict[str, Any]:
    """Everything, most valuable first; sentences are Messages, rows are told by file and line."""
    items = advice(_findings(found))
    files = [x.as_json() for x in found.files]
    counts = {key: sum(x[key] for x in files) for key in ("rows", "accepted", "bad", "excluded")}
    answers = {name: _shown(value, found) for name, value in found.answers.items()}
    answers["bad"] = [
        {
            "code": code,
            "rows": n,
            "examples": [{"where": str(x.where), "text": _reason(x)} for x in file.bad.examples[code]],
        }
        for file in found.files
        for code, n in file.bad.codes.most_common()
    ]
    return {
        "advice": [_advice(x, found) for x in items],
        "command": combined_command(items, _named(found)),
        "rows": counts,
        "files": files,
        "sources": [str(x.path) for x in found.request.sources],
        "base": found.request.base,
        "seed": found.request.seed,
        **answers,
    }


def plain(value: Any) -> Any:
    """A record for JSON: sentences in the reader's language."""
    if isinstance(value, Message):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _findings(found: Inspection) -> Findings:
    columns = [x for file in found.files for x in ((*file.use.findings(), *file.findings) if file.use else ())]
    bad = [(str(x.where), _reason(x)) for file in found.files for rows in file.bad.examples.values() for x in rows]
    return Findings(
        found.answers,
        found.total,
        sum(x.bad.codes.total() for x in found.files),
        _named(found),
        columns,
        bad[:EXAMPLES],
    )


def _named(found: Inspection) -> str:
    return shlex.join(x.path for x in found.request.sources)


def _reason(row: Any) -> str:
    return f"{row.reason} — {excerpt(row.excerpt)}" if row.excerpt else str(row.reason)


def _advice(x: Advice, found: Inspection) -> dict[str, Any]:
    is_sample = x.sampled and x.total < found.total
    low, high = wilson(x.share, x.total) if is_sample else (x.share, x.share)
    return {
        "code": x.code,
        "level": x.level,
        "level_name": LEVELS[x.level],
        "what": x.what,
        "rows": x.rows,
        "of": x.total,
        "share": x.share,
        "low": low,
        "high": high,
        "remedy": x.remedy,
        "examples": list(_examples(x, found)),
        "lines": _lines(x.listed, found),
    }


def _examples(x: Advice, found: Inspection) -> Iterator[dict[str, str]]:
    for place, text in x.texts[:EXAMPLES]:
        where = str(found.store.where(int(place))) if place.isdecimal() else place
        yield {"where": where, "text": text}
    if x.texts:
        return
    if x.code == "leaked":
        yield from _pairs(found)
        return
    rows = [row for group in x.groups for row in group] if x.groups else list(x.listed)
    for row in rows[:EXAMPLES]:
        yield shown_row(found, row, x.shown)


def _pairs(found: Inspection) -> Iterator[dict[str, str]]:
    """Held-out rows beside the training rows that they are in."""
    for _, i, row in found.answers["leakage"]["pairs"][:EXAMPLES]:
        other: Accepted = found.held_out[i]
        where = f"{other.where} = {found.store.where(row)}"
        yield {"where": where, "text": excerpt(f"{other.texts.given}\n{other.texts.answer}")}


def shown_row(found: Inspection, row: int, shown: str = "row") -> dict[str, str]:
    """A row as an example: {where, text}."""
    given, answer = found.store.texts(row)
    text = {"answer": excerpt(answer), "end": end_of(answer)}.get(shown) or _both(given, answer)
    label = found.label_names[found.label_ids[row]] if len(found.label_ids) else ""
    return {"where": str(found.store.where(row)), "text": f"{text} → {label[:SHOWN_LABEL]}" if label else text}


def _both(given: str, answer: str) -> str:
    return f"{excerpt(given, 100)} → {excerpt(answer, 100)}" if answer else excerpt(given)


def _lines(rows: Sequence[int], found: Inspection) -> dict[str, list[int]]:
    """The lines of rows, by file."""
    lines: dict[str, list[int]] = {}
    for row in rows[:LISTED]:
        where = found.store.where(row)
        lines.setdefault(where.file, []).append(where.line)
    return lines


def _shown(value: Any, found: Inspection) -> Any:
    """Occurrences as counts with examples; row numbers as places."""
    if isinstance(value, Occurrences):
        return {"rows": value.rows, "examples": [shown_row(found, row) for row in value.examples]}
    if isinstance(value, dict):
        new = {key: _shown(x, found) for key, x in value.items()}
        if "suggested" in value:
            new |= shown_row(found, value["row"])
        if "example" in value and isinstance(value["example"], int):
            new["example"] = shown_row(found, value["example"], "answer")
        if "examples" in value and isinstance(value["examples"], list):
            new["examples"] = [_group(x, found) for x in value["examples"]]
        if "pairs" in value and "leaked" in value:
            new["pairs"] = [
                {"kind": kind, "held_out": str(found.held_out[i].where), "where": str(found.store.where(row))}
                for kind, i, row in value["pairs"]
            ]
        return new
    return [_shown(x, found) for x in value] if isinstance(value, (list, tuple)) else value


def _group(x: Any, found: Inspection) -> Any:
    if isinstance(x, (list, tuple)) and len(x) == 2 and isinstance(x[1], str):
        return {"where": str(found.store.where(x[0])), "text": x[1]}
    if isinstance(x, list):
        return [shown_row(found, row) for row in x]
    return shown_row(found, x) if isinstance(x, int) else x


def write_report(record: dict[str, Any], file: Path) -> Path:
    """Draw a record into a page."""
    return write_inspection_report(record, file)
