"""A comparison in the terminal: regressions first, then the differences, slices, and rows to read side by side."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitiao.core.messages import Message
from weitiao.core.score import format_interval, format_p

COLORS = {"better": "green", "worse": "red"}
SHOWN_SLICES, SHOWN_CHARACTERS = 8, 300
HEAD = (
    Message("metric"), Message("n"), Message("reference"), Message("value"), Message("difference [95 % interval]"),
    Message("p"), Message("wins/ties/losses"), Message(""),
)  # fmt: skip
SLICE_HEAD = (Message("slice"), *HEAD[1:])


def print_comparison(comparison: Any, console: Console, rows: int) -> None:
    """Everything that a reader of a comparison needs first.

    Args:
        comparison: a `Comparison` (pipeline/compare.py).
        rows: how many that became worse, and how many that became better.
    """
    reference = comparison.reference.name
    for candidate in dict.fromkeys(x.candidate for x in comparison.differences):
        own = [x for x in comparison.differences if x.candidate == candidate]
        title = Message("{candidate} compared with {reference}", candidate=candidate, reference=reference)
        console.print(Text(str(title), "bold"), soft_wrap=True)
        if worse := [x.metric for x in own if x.verdict == "worse"]:
            names = Message("worse: {metrics}", metrics=", ".join(worse))
            console.print(Text(str(names), "bold red"), soft_wrap=True)
        console.print(_table(HEAD, [(x.metric, x) for x in own]))
        _print_slices(comparison, candidate, console)
        _print_rows([x for x in comparison.regressions if x.candidate == candidate], rows, "worse", reference, console)
        _print_rows([x for x in comparison.wins if x.candidate == candidate], rows, "better", reference, console)
    console.print(Text(str(comparison.footnote), "dim"), soft_wrap=True)
    for note in comparison.notes:
        console.print(Text(str(note), "dim"), soft_wrap=True)
    for gate in comparison.gates:
        template = Message("{gate} holds. {fact}") if gate.passed else Message("{gate} does not hold. {fact}")
        text = str(Message(template, gate=gate.gate, fact=gate.message))
        console.print(Text(text, "green" if gate.passed else "bold red"), soft_wrap=True)


def _table(head: Sequence[Message], differences: Sequence[tuple[str, Any]]) -> Table:
    table = Table(*map(str, head), box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.columns[0].overflow = "fold"
    for label, x in differences:
        counts = "" if x.wins is None else f"{x.wins}/{x.ties}/{x.losses}"
        scores = (format_interval(x.metric, y.as_json()) for y in (x.reference_score, x.candidate_score))
        p = format_p(x.p_adjusted) if x.test else ""
        values = (score.partition(" [")[0] for score in scores)
        verdict = Text(x.verdict_text, COLORS.get(x.verdict, "dim"))
        table.add_row(label, f"{x.n:,}", *values, str(x.change_text), p, counts, verdict)
    return table


def _print_slices(comparison: Any, candidate: str, console: Console) -> None:
    own = [x for x in comparison.slices if x.difference.candidate == candidate]
    if not own:
        return
    title = Message("{metric} by slice, the largest losses first", metric=own[0].difference.metric)
    console.print(Text(f"\n{title}"), soft_wrap=True)
    console.print(_table(SLICE_HEAD, [(f"{x.kind_text}: {x.name}", x.difference) for x in own[:SHOWN_SLICES]]))
    if (more := len(own) - SHOWN_SLICES) > 0:
        console.print(Text(str(Message("{n} more slices are in the record", n=more)), "dim"), soft_wrap=True)


def _print_rows(changes: Sequence[Any], shown: int, kind: str, reference: str, console: Console) -> None:
    if not changes or not shown:
        return
    templates = {
        "worse": Message("{n:,} rows became worse ({metric})"),
        "better": Message("{n:,} rows became better ({metric})"),
    }
    title = Message(templates[kind], n=len(changes), metric=changes[0].metric)
    console.print(Text(f"\n{title}", COLORS[kind]), soft_wrap=True)
    for x in changes[:shown]:
        console.print(Text(_one_line(x.row.input), "dim"), soft_wrap=True)
        lines = {str(Message("expected")): x.row.reference, reference: x.reference_answer, x.candidate: x.candidate_answer}
        for name, text in lines.items():
            console.print(Text(f"    {name}: {_one_line(text)}"), soft_wrap=True)
    if len(changes) > shown:
        console.print(Text(str(Message("all of them are in rows.jsonl of the record")), "dim"), soft_wrap=True)


def _one_line(text: str) -> str:
    """The end of a long text: of a prompt, the question."""
    line = " ⏎ ".join(x.strip() for x in text.strip().splitlines())
    return line if len(line) <= SHOWN_CHARACTERS else f"... {line[-SHOWN_CHARACTERS:]}"
