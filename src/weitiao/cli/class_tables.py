"""What is behind scores of classes, in the terminal: each class, confusion matrix, mistakes to read, calibration."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weitiao.core.messages import Message, translate
from weitiao.core.score import format_interval

MAX_COLUMNS = 12  # classes of a confusion matrix that a terminal has room for
SHOWN_MISTAKES = 10
SHOWN_CHARACTERS = 160  # of a mistake's text: its end, where the question is


def show_classes(console: Console, task: str, report: dict[str, Any]) -> None:
    """Print the report of a task's classes (evaluate/class_report.py)."""
    title = f"{task}: " if task else ""
    columns = translate("class"), translate("precision"), translate("recall"), "F1", translate("references")
    table = Table(*columns, translate("answered"))
    for name, x in report["classes"].items():
        shares = (format_interval("accuracy", x[key]) if x[key] else "-" for key in ("precision", "recall"))
        table.add_row(escape(name), *shares, f"{x['f1']:.3f}", str(x["references"]), str(x["answered"]))
    console.print()
    console.print(title + translate("each class"), style="bold", markup=False)
    console.print(table)
    if matrix := report.get("matrix"):
        _show_matrix(console, matrix)
    if bins := report.get("reliability"):
        _show_reliability(console, bins)
    if report["mistakes"]:
        _show_mistakes(console, report["mistakes"])


def _show_matrix(console: Console, matrix: dict[str, Any]) -> None:
    answers = matrix["answers"]
    console.print(translate("confusion matrix: references in rows, answers in columns"), style="bold")
    if len(answers) > MAX_COLUMNS:
        console.print(str(Message("{n} classes: see --json", n=len(answers))))
        return
    table = Table("", *(escape(x) if x else translate("other") for x in answers))
    for reference, counts in matrix["rows"].items():
        cells = (f"[green]{n}[/]" if answer == reference and n else str(n or "·") for answer, n in zip(answers, counts))
        table.add_row(escape(reference), *cells)
    console.print(table)


def _show_reliability(console: Console, bins: list[dict[str, float]]) -> None:
    console.print(translate("confidence, and how many answers of that confidence are right"), style="bold")
    table = Table(translate("confidence"), translate("right"), "n")
    for x in bins:
        table.add_row(f"{100 * x['confidence']:.0f} %", f"{100 * x['accuracy']:.0f} %", str(x["n"]))
    console.print(table)


def _show_mistakes(console: Console, mistakes: list[dict[str, Any]]) -> None:
    console.print(translate("mistakes to read, the most confident first"), style="bold")
    for x in mistakes[:SHOWN_MISTAKES]:
        sure = "" if x["probability"] is None else f" ({100 * x['probability']:.0f} %)"
        text = " ".join(x.get("text", "").split())
        text = f"…{text[-SHOWN_CHARACTERS:]}" if len(text) > SHOWN_CHARACTERS else text
        answered, reference = (", ".join(x[key]) or translate("none") for key in ("answered", "reference"))
        line = Message("row {row}: answered {answered}{sure}, not {reference}: {text}", row=x["row"] + 1, answered=answered,
                       sure=sure, reference=reference, text=text)  # fmt: skip
        console.print(f"  {line}", soft_wrap=True, markup=False)
    if len(mistakes) > SHOWN_MISTAKES:
        console.print("  " + str(Message("{n} more: see --json", n=len(mistakes) - SHOWN_MISTAKES)))
