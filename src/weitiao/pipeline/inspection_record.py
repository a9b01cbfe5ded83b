"""What an inspection has found, as one record for the terminal, the page and --json: texts of rows short and masked."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.finding import Finding
from weitiao.core.intervals import wilson
from weitiao.core.messages import Message, joined
from weitiao.data.inspection.advice import LEVELS, Advice, Findings, combined_command
from weitiao.data.inspection.advice_rules import advice
from weitiao.data.inspection.excerpts import cut_excerpt, end_of, excerpt, masked_names
from weitiao.data.inspection.occurrences import EXAMPLES, LISTED, Occurrences
from weitiao.data.personal_data.search import find_personal
from weitiao.evaluate.report.inspection_report import write_inspection_report
from weitiao.pipeline.inspect import Inspection
from weitiao.pipeline.inspection_rows import Accepted

SHOWN_LABEL = 40  # characters of a label
NAMING = ("classes", "wrong_labels")  # questions whose answers name classes, which may be anything that is written

Example = dict[str, Message | str]
"""{where, text}: a row that is shown."""


def inspection_record(inspection: Inspection) -> dict[str, Any]:
    """Everything, most valuable first; sentences are Messages, rows are told by file and line."""
    names = {x: masked_names(inspection.answers[x]) for x in NAMING if x in inspection.answers}
    inspection = replace(inspection, answers={**inspection.answers, **names})
    facts = _findings(inspection)
    items = advice(facts)
    files = [{**masked_names(x.as_json()), "file": str(x.path)} for x in inspection.files]
    counts = {key: sum(x[key] for x in files) for key in ("rows", "accepted", "bad", "excluded")}
    answers = {name: _with_examples(value, inspection) for name, value in inspection.answers.items()}
    answers["bad"] = [
        {
            "code": code,
            "rows": n,
            "examples": [{"where": _location(x.where), "text": _reason(x)} for x in file.bad.examples[code]],
        }
        for file in inspection.files
        for code, n in file.bad.codes.most_common()
    ]
    return {
        "advice": [_advice(x, inspection) for x in items],
        "command": combined_command(items, facts),
        "rows": counts,
        "files": files,
        "sources": [str(x.path) for x in inspection.request.sources],
        "base": inspection.request.base,
        "seed": inspection.request.seed,
        **answers,
    }


def plain(value: Any) -> Any:
    """A record for JSON: sentences in the reader's language."""
    if isinstance(value, Message):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _findings(inspection: Inspection) -> Findings:
    columns = [
        Finding(x.name, x.level, _without_personal(Message(x.message)))
        for file in inspection.files
        for x in ((*file.use.findings(), *file.findings) if file.use else ())
    ]
    bad = [x for file in inspection.files for rows in file.bad.examples.values() for x in rows]
    return Findings(
        inspection.answers,
        inspection.total,
        sum(x.bad.codes.total() for x in inspection.files),
        _named(inspection),
        any(x.use is not None and x.use.mapping.has_offsets for x in inspection.files),
        columns,
        [(_location(x.where), _reason(x)) for x in bad[:EXAMPLES]],
    )


def _named(inspection: Inspection) -> str:
    """The files and what was said of them, which is the same for all, as a shell reads it."""
    sources = inspection.request.sources
    options = [x for name, column in (sources[0].columns or {}).items() for x in ("--columns", f"{name}={column}")]
    options += ["--encoding", sources[0].encoding] if sources[0].encoding != "auto" else []
    return shlex.join([*(x.path for x in sources), *options])


def _location(where: SourceLocation) -> Message:
    return Message("{file}, line {line}", file=where.file, line=where.line)


def _reason(row: BadRow) -> Message:
    """Why a row cannot be used, and its beginning."""
    reason = _without_personal(Message(row.reason))
    return joined(" — ", [reason, cut_excerpt(row.excerpt)]) if row.excerpt else reason


def _without_personal(message: Message) -> Message:
    """A sentence that may quote a cell, without personal data."""
    text = str(message)
    return Message("{text}", text=excerpt(text, len(text))) if find_personal(text) else message


def _advice(x: Advice, inspection: Inspection) -> dict[str, Any]:
    is_sample = x.sampled and x.total < inspection.total
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
        "examples": list(_examples(x, inspection)),
        "lines": _lines(x.listed, inspection),
    }


def _examples(x: Advice, inspection: Inspection) -> Iterator[Example]:
    for position, text in x.texts[:EXAMPLES]:
        where = _location(inspection.store.where(position)) if isinstance(position, int) else position
        yield {"where": where, "text": text}
    if x.texts:
        return
    if x.code == "leaked":
        yield from _pairs(inspection)
        return
    rows = [row for group in x.groups for row in group] if x.groups else list(x.listed)
    for row in rows[:EXAMPLES]:
        yield row_example(inspection, row, x.excerpt)


def _pairs(inspection: Inspection) -> Iterator[Example]:
    """Held-out rows beside the training rows that they are in."""
    for _, i, row in inspection.answers["leakage"]["pairs"][:EXAMPLES]:
        other: Accepted = inspection.held_out[i]
        where = joined(" = ", [_location(other.where), _location(inspection.store.where(row))])
        yield {"where": where, "text": excerpt(f"{other.texts.prompt}\n{other.texts.answer}")}


def row_example(inspection: Inspection, row: int, cut: str = "row") -> Example:
    """A row as an example: {where, text}."""
    prompt, answer = inspection.store.texts(row)
    text = {"answer": excerpt(answer), "end": end_of(answer)}.get(cut) or _both(prompt, answer)
    label = inspection.label_names[inspection.label_ids[row]] if len(inspection.label_ids) else ""
    return {
        "where": _location(inspection.store.where(row)),
        "text": f"{text} → {excerpt(str(label), SHOWN_LABEL)}" if label else text,
    }


def _both(prompt: str, answer: str) -> str:
    return f"{excerpt(prompt, 100)} → {excerpt(answer, 100)}" if answer else excerpt(prompt)


def _lines(rows: Sequence[int], inspection: Inspection) -> dict[str, list[int]]:
    """The lines of rows, by file."""
    lines: dict[str, list[int]] = {}
    for row in rows[:LISTED]:
        where = inspection.store.where(row)
        lines.setdefault(where.file, []).append(where.line)
    return lines


def _with_examples(value: Any, inspection: Inspection) -> Any:
    """Occurrences as counts with examples; row numbers as places."""
    if isinstance(value, Occurrences):
        return {"rows": value.rows, "examples": [row_example(inspection, row) for row in value.examples]}
    if isinstance(value, dict):
        held_out = inspection.held_out
        new = {key: _with_examples(x, inspection) for key, x in value.items()}
        if "suggested" in value:
            new |= row_example(inspection, value["row"])
        if "example" in value and isinstance(value["example"], int):
            new["example"] = row_example(inspection, value["example"], "answer")
        if "examples" in value and isinstance(value["examples"], list):
            new["examples"] = [_group(x, inspection) for x in value["examples"]]
        if "pairs" in value and "leaked" in value:
            new["pairs"] = [
                {"kind": kind, "held_out": _location(held_out[i].where), "where": _location(inspection.store.where(row))}
                for kind, i, row in value["pairs"]
            ]
        return new
    return [_with_examples(x, inspection) for x in value] if isinstance(value, (list, tuple)) else value


def _group(x: Any, inspection: Inspection) -> Any:
    if isinstance(x, (list, tuple)) and len(x) == 2 and isinstance(x[1], str):
        return {"where": _location(inspection.store.where(x[0])), "text": x[1]}
    if isinstance(x, list):
        return [row_example(inspection, row) for row in x]
    return row_example(inspection, x) if isinstance(x, int) else x


def write_report(record: dict[str, Any], file: Path) -> Path:
    """Draw a record into a page."""
    return write_inspection_report(record, file)
