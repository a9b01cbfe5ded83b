"""Commands that set models side by side: compare."""

from typing import Annotated, Any

import typer
from rich.console import Console

from weitiao.cli.comparison_table import print_comparison
from weitiao.cli.option_group import option_group
from weitiao.cli.review_table import print_judges
from weitiao.cli.reviewing import JUDGE_OPTIONS
from weitiao.cli.run_command import AsJson, Columns, print_json, source_settings, usage_error
from weitiao.core.errors import REQUIREMENT_NOT_MET
from weitiao.core.messages import Message

Models = Annotated[
    list[str],
    typer.Argument(
        help="The model to compare with, then others: runs, folders, hub ids, results/NAME.json; or NAME=MODEL."
    ),
]
MEASURE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "metrics": (
        Annotated[list[str] | None, typer.Option("--metric", help="A metric; repeatable; default: all that they share.")],
        None,
    ),
    "exams": (
        Annotated[list[str] | None, typer.Option("--exam", help="An exam; repeatable; default: those of the recipes.")],
        None,
    ),
    "task": (Annotated[str, typer.Option("--task", help="Of a multi-task run: the task of the file.")], ""),
    "limit": (
        Annotated[int | None, typer.Option(min=1, help="Maximum number of rows for metrics that generate text.")],
        None,
    ),
}
GATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "require": (
        Annotated[list[str] | None, typer.Option(help='A gate: "f1>=0.82"; repeatable. Not met: exit code 4.')],
        None,
    ),
    "no_worse": (
        Annotated[
            list[str] | None,
            typer.Option(help="A gate: accuracy:1%, exams:1% or loss:0.05 may be lost; repeatable. Not met: exit code 4."),
        ],
        None,
    ),
    "by_interval": (
        Annotated[bool, typer.Option("--by-interval", help="Gates hold for the whole 95 % interval, not the value.")],
        False,
    ),
}
Settings = dict[str, Any]


@option_group("measuring", MEASURE_OPTIONS, lambda chosen: chosen)
@option_group("gates", GATE_OPTIONS, lambda chosen: chosen)
@option_group("judging", JUDGE_OPTIONS, lambda chosen: chosen)
def compare(
    models: Models,
    data: Annotated[str | None, typer.Option(help="Rows of this file; default: the first run's held-out rows.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows that became worse, and better, are shown.")] = 3,
    out: Annotated[str, typer.Option(help="The folder of the record; default: comparisons/A-B.")] = "",
    html: Annotated[str, typer.Option(help="The report, one file; default: report.html in the record.")] = "",
    columns: Columns = None,
    as_json: AsJson = False,
    *,
    measuring: Settings,
    gates: Settings,
    judging: Settings,
) -> None:
    """Is it really better? Models on the same rows: paired tests, rows to read, slices, gates for CI."""
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.compare import CompareOptions
    from weitiao.pipeline.compare import compare as compare_models

    task = measuring.pop("task")
    if data is None and (task or columns):
        raise usage_error("--task and --columns say how the rows of a file are read: name it with --data FILE")
    source = source_settings(data, columns, "auto", "auto", task) if data is not None else None
    chosen = {key: tuple(x) if isinstance(x, list) else x or () for key, x in (measuring | gates).items()}
    chosen |= {"limit": measuring["limit"], "by_interval": gates["by_interval"]}
    console = Console(highlight=False)
    options = CompareOptions(models, source, out=out, html=html, **chosen, **judging)
    comparison = compare_models(options, Reporter(Console(quiet=as_json, highlight=False)))
    if as_json:
        print_json({**comparison.as_json(), "folder": str(comparison.folder), "html": str(comparison.report)})
    else:
        print_comparison(comparison, console, rows)
        print_judges(comparison.judges, console)
        console.print(str(Message("report: {file}", file=comparison.report)), soft_wrap=True, markup=False)
    if not comparison.passed:
        raise typer.Exit(REQUIREMENT_NOT_MET)
