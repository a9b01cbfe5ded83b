"""report.html of a Run: the verdict first, then scores, classes, forgetting, curves, answers, data, how to repeat it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.core import events
from weitiao.core.command import command
from weitiao.core.finding import Finding
from weitiao.core.forgetting_lines import forgetting_lines
from weitiao.core.history import history, result, summary, throughput
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.score import format_interval, format_score, proportion, score_notes, score_rows
from weitiao.evaluate.comparison.before_and_after import against_majority, before_and_after
from weitiao.evaluate.comparison.difference import VERDICTS, Difference
from weitiao.evaluate.report.charts import interval_bar, loss_curve, reliability_diagram, shade, small_curve
from weitiao.evaluate.report.page import value_interval, write_page
from weitiao.evaluate.report.verdict import other_baselines, verdict

MAX_CLASSES = 30  # of a confusion matrix that is drawn; beyond, the most confused pairs are listed
MAX_CONFUSED = 20
SHOWN_MISTAKES = 20
LABELS = {
    "contents": Message("Contents"),
    "verdict": Message("Verdict"),
    "scores": Message("Before and after"),
    "metric": Message("metric"),
    "before": Message("before"),
    "after": Message("after"),
    "change": Message("change"),
    "baselines": Message("To compare with:"),
    "intervals": Message(
        "Brackets are 95 % intervals. Measured on held-out rows that were not trained on. A change with an interval is of "
        "the same rows before and after, and its verdict is a paired test at p < 0.05, after Holm over the metrics; "
        "without one, the verdict is whether the two intervals overlap."
    ),
    "classes": Message("Classes"),
    "class": Message("class"),
    "precision": Message("precision"),
    "recall": Message("recall"),
    "references": Message("references"),
    "answered": Message("answered"),
    "answer": Message("answer"),
    "matrix": Message("confusion matrix: references in rows, answers in columns"),
    "confused": Message("classes that are most often confused"),
    "share": Message("share of the reference's rows [95 %]"),
    "shades": Message("Blue: right; orange: wrong; the darker, the larger the share of the reference's rows."),
    "other": Message("other"),
    "rows": Message("rows"),
    "reliability": Message("confidence (→) and how many answers of that confidence are right (↑), in %"),
    "calibrated": Message("On the dashed line confidence is right; under it the model is too sure. Lines: 95 % intervals."),
    "mistakes": Message("mistakes to read, the most confident first"),
    "row": Message("row"),
    "forgetting": Message("What it forgot"),
    "paired": Message(
        "The same items before and after; ±: the paired 95 % interval (its wider half); verdicts after Holm."
    ),
    "loss": Message("Loss"),
    "masks": Message("What carries loss"),
    "carries": Message("carries loss"),
    "context": Message("is only read"),
    "cut": Message("was cut off"),
    "legend": Message(
        "thin: each step · thick: running mean · dots: validation · dashed: a skipped step · vertical line: a rollback"
    ),
    "learning_rate": Message("Learning rate"),
    "grad_norm": Message("Gradient norm, before clipping"),
    "samples": Message("Answers, before and after"),
    "unchosen": Message("The first held-out rows: nobody chose them."),
    "reference": Message("reference"),
    "events": Message("What happened"),
    "step": Message("step"),
    "preflight": Message("Preflight check"),
    "data": Message("Data"),
    "decisions": Message("Chosen for you, and why"),
    "key": Message("key"),
    "value": Message("value"),
    "why": Message("why"),
    "phases": Message("Time"),
    "repeat": Message("How to repeat it"),
    "repeated": Message(
        "The same files, seed, versions and number of threads give the same weights on a CPU of the same kind."
    ),
    "recipe": Message("Recipe"),
    "environment": Message("Environment"),
}


def write_report(run: Run) -> Path:
    """Draw a Run folder into its report.html; it opens in the reader's language."""
    rows = run.read("row_results.json", {})
    paired, constant = before_and_after(run.scores, rows), against_majority(rows, run.read("classes.json", {}))
    return write_page(run.folder / "report.html", "run.html.jinja", lambda: contents(run, paired, constant))


def contents(run: Run, paired: Mapping[str, Difference], constant: tuple[str, Difference] | None = None) -> dict[str, Any]:
    """What the page shows, in the reader's language.

    Args:
        paired, constant: see comparison/before_and_after.py.
    """
    resolved, scores = run.read("resolved.json", {}), run.scores
    steps, validations = list(run.events(events.Step)), list(run.events(events.Validation))
    data = resolved.get("data", {})
    return {
        "label": LABELS,
        "name": run.folder.name,
        "status": run.status.message,
        "result": result(run) or "",
        "speed": " · ".join(str(x) for x in (speed(steps), throughput(run)) if x is not None),
        "verdict": list(verdict(run, paired, constant)),
        "rows": [score_line(x, scores, paired.get(x["name"])) for x in score_rows(scores)],
        "notes": score_notes(scores),
        "baselines": list(baselines(scores, constant)),
        "classes": list(classes_of(run.read("classes.json", {}).get("after", {}))),
        "forgotten": [(x, text, VERDICTS.get(x, "")) for x, text in forgetting_lines(scores.get("forgetting"))],
        "curve": loss_curve(steps, validations, list(run.events(events.Skip, events.Rollback))),
        "learning_rate": small_curve([(x.step, x.learning_rate) for x in steps], LABELS["learning_rate"]),
        "grad_norm": small_curve([(x.step, x.grad_norm) for x in steps], LABELS["grad_norm"]),
        "samples": run.read("samples.jsonl"),
        "summary": summary(run),
        "events": [("" if step is None else step, text) for step, text in history(run)],
        "findings": [(x.level, x.name, x.message) for x in map(Finding.from_json, run.read("preflight.json", []))],
        "data": [(key, x) for key, x in {**data, **data.get("notes", {})}.items() if key != "notes"],
        "previews": [(Message.from_json(x["title"]), x["pieces"]) for x in resolved.get("previews", [])],
        "decisions": [(x.key, x.shown_value, x.reason) for x in run.decisions.values()],
        "phases": list(phase_seconds(run).items()),
        "commands": repeat_commands(run),
        "identity": list(identity_of(run, resolved)),
        "recipe": (run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        "environment": json.dumps(resolved.get("environment", {}), indent=1),
    }


def score_line(row: dict[str, str], scores: dict[str, Any], paired: Difference | None) -> dict[str, Any]:
    """A line of the table: as `score_rows` has it, with the paired change where there is one."""
    name = row["name"]
    line: dict[str, Any] = {**row, **{key: value_interval(row[key]) for key in ("before", "after", "change")}}
    if paired is not None and paired.test:
        line |= {
            "change": value_interval(str(paired.change_text)),
            "verdict": paired.verdict,
            "verdict_text": paired.verdict_text,
        }
    line["bar"] = interval_bar(name, [(when, scores.get(when, {}).get(name)) for when in ("before", "after")])
    return line


def baselines(scores: dict[str, Any], constant: tuple[str, Difference] | None) -> Iterator[tuple[Any, str, str]]:
    """(what the result is compared with, its metric, its score)."""
    if constant is not None:
        record = constant[1].reference_score.as_json()
        yield Message("always “{answer}”", answer=constant[0]), record["name"], format_score(record["name"], record)
    if "prompted" in scores:
        record = scores["prompted"]["reference_score"]
        label = Message("base with {k} examples in its prompt", k=scores["prompted"]["k"])
        yield label, record["name"], format_score(record["name"], record)
    for name, record in other_baselines(scores, constant).items():
        yield name, record["name"], format_score(record["name"], record)


def classes_of(reports: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the page shows of each task's classes.

    Args:
        reports: by task, see class_report.py.
    """
    for number, (task, report) in enumerate(reports.items()):
        if not report:
            continue
        bins = report.get("reliability") or []
        table = [
            {
                "name": name,
                **{
                    key: value_interval(format_interval("accuracy", x[key]) if x[key] else "–")
                    for key in ("precision", "recall")
                },
                "f1": f"{x['f1']:.3f}",
                "references": x["references"],
                "answered": x["answered"],
            }
            for name, x in report["classes"].items()
        ]
        yield {
            "task": task,
            "id": f"classes-{number}",
            "n": f"{report['n']:,}",
            "table": table,
            "matrix": matrix_of(report.get("matrix")),
            "confused": confused_of(report.get("matrix")),
            "reliability": reliability_diagram(bins) if bins else "",
            "calibration": calibration(bins) if bins else "",
            "mistakes": [_mistake(x) for x in report["mistakes"][:SHOWN_MISTAKES]],
        }


def matrix_of(matrix: dict[str, Any] | None) -> dict[str, Any]:
    """The cells with their shades; {} where there are none, or too many to read."""
    if not matrix or len(matrix["answers"]) > MAX_CLASSES:
        return {}
    answers = matrix["answers"]
    rows = [
        (name, [(n, shade(n, sum(counts)), "right" if name == answer else "") for answer, n in zip(answers, counts)])
        for name, counts in matrix["rows"].items()
    ]
    return {"answers": [x or LABELS["other"] for x in answers], "rows": rows}


def confused_of(matrix: dict[str, Any] | None) -> list[tuple[str, Any, int, str]]:
    """(reference, answer, rows, their share) of the classes most often confused, where the matrix is too large to draw."""
    if not matrix or len(matrix["answers"]) <= MAX_CLASSES:
        return []
    cells = [(name, a, n) for name, counts in matrix["rows"].items() for a, n in zip(matrix["answers"], counts)]
    confused = sorted((x for x in cells if x[0] != x[1] and x[2]), key=lambda x: -x[2])
    totals = {name: sum(counts) for name, counts in matrix["rows"].items()}
    return [
        (name, answer or LABELS["other"], n, format_interval("accuracy", proportion("accuracy", n, totals[name]).as_json()))
        for name, answer, n in confused[:MAX_CONFUSED]
    ]


def calibration(bins: Sequence[dict[str, float]]) -> Message:
    """The expected calibration error in a sentence (Naeini et al. 2015)."""
    total = sum(x["n"] for x in bins)
    error = sum(x["n"] * abs(x["accuracy"] - x["confidence"]) for x in bins) / total
    return Message("expected calibration error {error:.1%}, n = {n:,}", error=error, n=int(total))


def _mistake(x: dict[str, Any]) -> dict[str, Any]:
    none = Message("none")
    return {
        "row": x["row"] + 1,
        "text": x.get("text", ""),
        "reference": ", ".join(x["reference"]) or none,
        "answered": ", ".join(x["answered"]) or none,
        "sure": "" if x["probability"] is None else f"{100 * x['probability']:.0f} %",
    }


def repeat_commands(run: Run) -> str:
    """The commands that do it again."""
    folder = run.folder
    return (
        f"{command()} train {folder}/recipe.yaml out={folder}-again\n"
        f"{command()} evaluate {folder}\n"
        f"{command()} compare {folder} {folder}-again\n"
    )


def identity_of(run: Run, resolved: dict[str, Any]) -> Iterator[tuple[Message | str, str]]:
    """What must be the same: seed, base, versions, and the files with their sha256."""
    yield Message("seed"), str(run.recipe.seed)
    yield Message("base model"), f"{run.recipe.base} ({resolved.get('base', '?')})"
    packages = resolved.get("environment", {}).get("packages", {})
    yield Message("versions"), ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if rows := resolved.get("data", {}).get("fingerprint"):
        yield Message("fingerprint of the rows"), rows
    for key, sha256 in resolved.get("identity", {}).items():
        if key.startswith("file "):
            yield key.removeprefix("file "), f"sha256 {sha256}…"


def phase_seconds(run: Run) -> dict[str, float]:
    """How long each phase took; of a resumed run, over all its attempts."""
    seconds: dict[str, float] = {}
    for x in run.events(events.Phase):
        if x.seconds is not None:
            seconds[x.name] = seconds.get(x.name, 0.0) + x.seconds
    return seconds


def speed(steps: Sequence[events.Step]) -> Message | None:
    """Steps, tokens and seconds together; None where no step was taken."""
    if not steps:
        return None
    tokens, seconds = sum(x.tokens for x in steps), sum(x.seconds for x in steps)
    return Message(
        "{steps:,} steps, {tokens:,} tokens in {seconds:,.0f} s ({rate:,.0f} tokens/s)",
        steps=len(steps),
        tokens=tokens,
        seconds=seconds,
        rate=tokens / max(seconds, 1e-9),
    )
