"""report.html of a comparison: the verdict first, then differences, slices, rows to read, gates, how to repeat it."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.command import command
from weitiao.core.messages import Message
from weitiao.core.score import format_interval, format_p, format_score
from weitiao.core.version import VERSION
from weitiao.evaluate.comparison.comparison import Comparison, JudgedPair, RowChange
from weitiao.evaluate.comparison.difference import Difference
from weitiao.evaluate.report.charts import counts_bar, interval_bar
from weitiao.evaluate.report.page import value_interval, write_page
from weitiao.evaluate.report.verdict import Line

SHOWN_ROWS = 20  # that became worse, and as many that became better
SHOWN_SLICES = 30
LABELS = {
    "title": Message("Comparison"),
    "verdict": Message("Verdict"),
    "models": Message("Models"),
    "model": Message("model"),
    "identity": Message("fingerprint"),
    "metric": Message("metric"),
    "reference": Message("reference"),
    "value": Message("value"),
    "difference": Message("difference [95 % interval]"),
    "p": Message("p"),
    "wins": Message("wins/ties/losses"),
    "slice": Message("slice"),
    "slices": Message("Slices, the largest losses first"),
    "worse": Message("Rows that became worse"),
    "better": Message("Rows that became better"),
    "expected": Message("expected"),
    "more": Message("all of them are in rows.jsonl of the record"),
    "judges": Message("Judge models"),
    "first": Message("first"),
    "second": Message("second"),
    "share": Message("share of the first [95 %]"),
    "repeat": Message("How to repeat it"),
    "in_memory": Message("The rows were given in memory: no command has them."),
    "kept": Message(
        "results/NAME.json of this folder holds what a model did, and stands in for the model in another comparison."
    ),
    "gates": Message("Gates"),
}
LEADS = {
    "better": Message("{candidate} is better than {reference}: {metric} {before} → {after}, {change} (p {p}, n = {n:,})."),
    "worse": Message("{candidate} is worse than {reference}: {metric} {before} → {after}, {change} (p {p}, n = {n:,})."),
    "changed": Message("{candidate} differs from {reference}: {metric} {before} → {after}, {change} (p {p}, n = {n:,})."),
    "open": Message(
        "No difference between {candidate} and {reference} is shown: {metric} {before} → {after}, {change} "
        "(p {p}, n = {n:,})."
    ),
    "few_rows": Message(
        "Too few rows for a verdict on {candidate} and {reference}: {metric} {before} → {after}, {change} (n = {n:,})."
    ),
    "not_measured": Message("{metric} was not measured of both {candidate} and {reference}."),
}


def write_comparison_report(comparison: Comparison, arguments: Sequence[str], file: Path) -> Path:
    """Draw a comparison into one file.

    Args:
        arguments: of `weitiao compare`, to do it again; (): its rows are in no file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_page(file, "comparison.html.jinja", lambda: contents(comparison, arguments))


def contents(comparison: Comparison, arguments: Sequence[str]) -> dict[str, Any]:
    """What the page shows, in the reader's language."""
    candidates = [x.name for x in comparison.results[1:]]
    return {
        "label": LABELS,
        "name": " / ".join(x.name for x in comparison.results),
        "verdict": list(_verdict(comparison)),
        "models": [(x.name, x.target, x.identity) for x in comparison.results],
        "candidates": [_of_candidate(comparison, x) for x in candidates],
        "footnote": comparison.footnote,
        "notes": comparison.notes,
        "gates": [(x.passed, x.gate, x.message) for x in comparison.gates],
        "judges": [_judged(x.judge, y) for x in comparison.judges for y in x.pairs],
        "commands": f"{command()} compare {shlex.join(arguments)}\n" if arguments else "",
        "facts": [
            (Message("versions"), f"weitiao {VERSION}"),
            (Message("fingerprint of the rows"), comparison.rows_fingerprint),
            (Message("record"), str(comparison.folder or "")),
        ],
    }


def _verdict(comparison: Comparison) -> Iterator[Line]:
    """Of each candidate the main metric and what became worse; then the gates."""
    main = comparison.slices[0].difference.metric if comparison.slices else None
    main = comparison.changes[0].metric if comparison.changes else main
    for name in dict.fromkeys(x.candidate for x in comparison.differences):
        own = [x for x in comparison.differences if x.candidate == name]
        first = next((x for x in own if x.metric == main), own[0])
        yield first.verdict if first.verdict in ("better", "worse") else "", _lead(comparison, first)
        if worse := [x.metric for x in own if x.verdict == "worse" and x is not first]:
            yield "worse", Message("{candidate}: worse by {metrics}.", candidate=name, metrics=", ".join(worse))
    failed = [x for x in comparison.gates if not x.passed]
    for x in failed:
        yield "worse", Message("{gate} does not hold. {fact}", gate=x.gate, fact=x.message)
    if comparison.gates and not failed:
        yield "better", Message("All {n} gates hold.", n=len(comparison.gates))


def _lead(comparison: Comparison, x: Difference) -> Message:
    values = {
        key: format_interval(x.metric, y.as_json())
        for key, y in (("before", x.reference_score), ("after", x.candidate_score))
    }
    return Message(
        LEADS[x.verdict],
        candidate=x.candidate, reference=comparison.reference.name, metric=x.metric, change=x.change_text,
        p=format_p(x.p_adjusted), n=x.n, **values,
    )  # fmt: skip


def _of_candidate(comparison: Comparison, name: str) -> dict[str, Any]:
    """Tables and rows of one candidate."""
    slices = [x for x in comparison.slices if x.difference.candidate == name]
    changes = {
        "worse": [x for x in comparison.regressions if x.candidate == name],
        "better": [x for x in comparison.wins if x.candidate == name],
    }
    return {
        "name": name,
        "title": Message("{candidate} compared with {reference}", candidate=name, reference=comparison.reference.name),
        "table": [_line(x.metric, x) for x in comparison.differences if x.candidate == name],
        "slices": [_line(f"{x.kind_text}: {x.name}", x.difference) for x in slices[:SHOWN_SLICES]],
        "changes": [
            (kind, len(found), [_said(x, comparison.reference.name) for x in found[:SHOWN_ROWS]])
            for kind, found in changes.items()
            if found
        ],
    }


def _line(label: str, x: Difference) -> dict[str, Any]:
    """A line of a table."""
    bounds = {"value": x.change, "low": x.low, "high": x.high, "n": x.n}
    return {
        "label": label,
        "n": f"{x.n:,}",
        "reference": value_interval(format_interval(x.metric, x.reference_score.as_json())),
        "value": value_interval(format_interval(x.metric, x.candidate_score.as_json())),
        "counts": counts_bar(x.wins, x.ties, x.losses) if x.wins is not None and x.losses is not None else "",
        "bar": interval_bar(x.metric, [(x.verdict, bounds)], zero=True),
        "change": value_interval(str(x.change_text)),
        "p": format_p(x.p_adjusted) if x.test else "",
        "wins": "" if x.wins is None else f"{x.wins}/{x.ties}/{x.losses}",
        "verdict": x.verdict,
        "verdict_text": x.verdict_text,
    }


def _judged(judge: str, x: JudgedPair) -> tuple[str, str, str, str, str]:
    counts = f"{x.first_wins}/{x.ties}/{x.second_wins}"
    return judge, x.first, x.second, counts, format_score("accuracy", x.share.as_json())


def _said(x: RowChange, reference: str) -> dict[str, Any]:
    said = [(LABELS["expected"], x.row.reference), (reference, x.reference_answer), (x.candidate, x.candidate_answer)]
    return {"prompt": x.row.input, "said": said}
