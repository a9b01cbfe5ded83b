"""Commands that look at results: evaluate, runs, why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitiao.cli.class_tables import show_classes
from weitiao.cli.forgetting_lines import show_forgetting
from weitiao.cli.option_group import option_group
from weitiao.cli.run_command import (
    AsJson,
    Columns,
    Encoding,
    Format,
    MaxRows,
    Target,
    print_json,
    source_settings,
    usage_error,
)
from weitiao.core.command import command
from weitiao.core.messages import Message, translate

if TYPE_CHECKING:
    from weitiao.core.scores import Scores

RUN_COLUMNS = (
    Message("run"),
    Message("status"),
    Message("method"),
    Message("objective"),
    Message("metric"),
    Message("before"),
    Message("after"),
    Message("n"),
)

EVALUATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "exams": (
        Annotated[
            list[str] | None, typer.Option("--exam", help="An exam: a name (see weitiao exams) or a YAML file; repeatable.")
        ],
        None,
    ),
    "items": (
        Annotated[str | None, typer.Option(help="Write each exam item's result into this file (JSON lines).")],
        None,
    ),
    "forgetting": (
        Annotated[bool, typer.Option("--forgetting", help="What a run has lost beside its task, and what to do about it.")],
        False,
    ),
    "limit": (
        Annotated[int | None, typer.Option(min=1, help="Maximum number of rows for metrics that generate text.")],
        None,
    ),
    "max_bad_fraction": (
        Annotated[
            float | None,
            typer.Option(min=0, max=1, help="Stop if more than this fraction of the file cannot be measured."),
        ],
        None,
    ),
}


@option_group("settings", EVALUATE_OPTIONS, lambda chosen: {**chosen, "exams": chosen["exams"] or ()})
def evaluate(
    target: Target,
    data: Annotated[str | None, typer.Option(help="Measure on this file; default: the run's held-out rows.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric; repeatable.")] = None,
    task: Annotated[str, typer.Option(help="Of a multi-task run: the task of the file.")] = "",
    columns: Columns = None,
    encoding: Encoding = "auto",
    format: Format = "auto",
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Measure a model: every score with its n and its 95 % interval."""
    from weitiao import api

    source = source_settings(data, columns, encoding, format, task) if data is not None else None
    scores = api.evaluate(target, source, metric or (), task=task, **settings, verbose=not as_json)
    if as_json:
        counts = {name: {"total": x.total, "left_out": x.left_out} for name, x in scores.items()}
        notes = {name: {"notes": [str(note) for note in x.notes]} for name, x in scores.items()}
        baselines = {name: x.as_json() for name, x in scores.baselines.items()}
        more = {"classes": scores.classes, "forgetting": scores.forgetting, "baselines": baselines}
        plain = {name: {**x.as_json(), **counts[name], **notes[name]} for name, x in scores.items()}
        print_json(plain | {key: x for key, x in more.items() if x})
        return
    console = Console(highlight=False)
    if scores:
        _show_scores(console, scores)
    if scores.forgetting:
        show_forgetting(console, scores.forgetting)


def _show_scores(console: Console, scores: "Scores") -> None:
    table = Table(translate("metric"), translate("value [95 % interval]"), translate("interval"))
    for name, score in (*scores.items(), *scores.baselines.items()):
        table.add_row(name, str(score), str(score.interval_description))
    console.print(table)
    for note in dict.fromkeys(note for score in scores.values() for note in score.notes):
        console.print(str(note), soft_wrap=True, markup=False)
    for task, report in scores.classes.items():
        show_classes(console, task, report)


def exams(
    name: Annotated[str, typer.Argument(help="An exam: a name or a YAML file; default: all that ship with weitiao.")] = "",
    export: Annotated[str, typer.Option(help="Write it into this folder as a task of lm-evaluation-harness.")] = "",
    as_json: AsJson = False,
) -> None:
    """The exams that ship with weitiao: what each tests, its language, its licence; of one, what a model is asked."""
    if export and not name:
        raise usage_error("name an exam and a folder: {command} exams NAME --export FOLDER", command=command())
    if export:
        from weitiao.pipeline.exam_data import export_exam

        Console(highlight=False).print(str(export_exam(name, export)), soft_wrap=True, markup=False)
        return
    if name:
        _show_exam(name, as_json)
        return
    from weitiao.core.exam import read_exam, shipped_exams

    read = [read_exam(name)[0] for name in shipped_exams()]
    if as_json:
        print_json(
            [{"name": x.name, "language": x.language, "licence": x.licence, "description": x.description} for x in read]
        )
        return
    table = Table(translate("exam"), translate("language"), translate("licence"), translate("description"))
    for x in read:
        table.add_row(x.name, x.language, x.licence, x.description)
    Console().print(table)


def _show_exam(name: str, as_json: bool) -> None:
    """What a model is asked, and what counts as right."""
    from weitiao.pipeline.exam_data import view_exam

    view, console = view_exam(name), Console(highlight=False)
    if as_json:
        print_json(view.as_json())
        return
    head = Message(
        "{exam}: {description}; {n:,} questions", exam=view.exam.name, description=view.exam.description, n=view.items
    )
    console.print(Text(str(head), "bold"))
    console.print(Text(view.prompt))
    for option in view.first.options or (view.first.answer,):
        is_right = option == view.first.solved
        console.print(Text(f"  {'✓' if is_right else '·'} {option}", "green" if is_right else ""))


def verify(
    target: Annotated[str, typer.Argument(help="A run folder.")],
    form: Annotated[
        str, typer.Argument(help="A merged folder, an adapter folder, an exported file, or the address of a server.")
    ],
    max_rows: MaxRows = None,
    model: Annotated[str, typer.Option(help="Of a server: the name of the model; default: its only one.")] = "",
    key_file: Annotated[str, typer.Option(help="Of a server: a file with its API key.")] = "",
    as_json: AsJson = False,
) -> None:
    """Prove that what is served is the model that was trained: answers, template and stop tokens, on the run's own rows."""
    from weitiao import api

    key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else ""
    report = api.verify(target, form, max_rows=max_rows, model=model, key=key, verbose=not as_json)
    if as_json:
        print_json(report.as_json())
    else:
        console = Console(highlight=False)
        for line in report.lines:
            console.print(str(line), soft_wrap=True, markup=False)
    report.check()
    if not as_json:
        Console(highlight=False).print(
            str(Message("{form} is the model that was trained", form=form)), style="green", soft_wrap=True, markup=False
        )


def runs(
    folder: Annotated[str, typer.Argument(help="The folder that holds the runs.")] = "runs", as_json: AsJson = False
) -> None:
    """A table of runs: status, and scores before and after."""
    from weitiao import api

    rows = api.list_runs(folder)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    table = Table(*map(str, RUN_COLUMNS))
    for x in rows:
        scores = ("" if value is None else f"{value:.3f}" for value in (x.before, x.after))
        table.add_row(x.run, str(x.status_message), x.method, x.objective, x.metric, *scores, str(x.count))
    Console().print(table if rows else str(Message("no runs in {folder}/", folder=folder)))


def why(target: Annotated[str, typer.Argument(help="A run folder.")], as_json: AsJson = False) -> None:
    """What happened in a run and why: decisions, skipped steps, rollbacks, suspect rows."""
    from weitiao.core import history

    console, story = Console(highlight=False), history.why(target)
    if as_json:
        print_json(story.as_json())
        return
    console.print(str(story.summary), style="bold", soft_wrap=True, markup=False)
    for step, message in story.events:
        line = Message("step {step}: {message}", step=step, message=message) if step is not None else message
        console.print(f"  {line}", soft_wrap=True, markup=False)
    if story.decisions:
        console.print("\n" + translate("chosen for you:"), style="bold")
    for x in story.decisions:
        console.print(f"  {x.key} = {x.shown_value}: {x.reason}", soft_wrap=True, markup=False)
