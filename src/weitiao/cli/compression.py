"""The command `weitiao compress`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weitiao.cli.run_command import AsJson, print_json, usage_error
from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.pipeline.compression import CompressionReport


def compress(
    target: Annotated[str, typer.Argument(help="A Run, which is merged first, or a folder of a merged model.")],
    out: Annotated[str, typer.Argument(help="A new folder; with --measure, one that was compressed elsewhere.")],
    method: Annotated[
        str,
        typer.Option(help="int8, int4, nf4, magnitude, wanda, drop_layers, gptq or llm_compressor; see `weitiao explain`."),
    ] = "int8",
    set: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, sparsity=0.5; repeatable.")
    ] = None,
    heal: Annotated[int, typer.Option(min=0, help="After pruning: steps of fine-tuning on the Run's own rows.")] = 0,
    data: Annotated[str | None, typer.Option(help="Rows to measure on; default: the Run's held-out rows.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows for metrics that generate text.")] = None,
    precision: Annotated[str, typer.Option(help="To measure in: bf16 or fp32; auto: what is fast here.")] = "auto",
    measure: Annotated[bool, typer.Option("--measure", help="Only measure OUT against TARGET.")] = False,
    json: AsJson = False,
) -> None:
    """Make a tuned model smaller, and print size, speed and quality before and after."""
    from weitiao import api

    source = {"path": data} if data else None
    settings = dict(_setting(x) for x in set or ())
    options: dict[str, Any] = {"heal": heal, "limit": limit, "precision": precision, "measure": measure, "data": source}
    report = api.compress(target, out, method=method, settings=settings, **options, verbose=not json)
    if json:
        print_json(report.as_json())
    else:
        print_report(report, Console(highlight=False))


def print_report(report: "CompressionReport", console: Console) -> None:
    """The table, then what a reader must know."""
    if report.lines:
        table = Table(box=None)
        for title in (Message("figure"), Message("merged"), Message("compressed")):
            table.add_column(str(title), no_wrap=True)
        for label, before, after in report.lines:
            table.add_row(str(label), before, after)
        console.print(table)
        console.print(str(report.comparison), style="dim", soft_wrap=True)
    for note in report.notes:
        console.print(str(note), soft_wrap=True)
    if report.after is not None:
        console.print(str(Message("written: {folder}, with README.md and compression.json", folder=report.folder)))


def _setting(text: str) -> tuple[str, Any]:
    """
    >>> _setting("sparsity=0.5"), _setting("pattern=2:4")
    (('sparsity', 0.5), ('pattern', '2:4'))
    """
    import yaml

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise usage_error("--set takes KEY=VALUE, not {text!r}", text=text)
    if ":" in value:  # YAML 1.1 reads 2:4 as a number in base 60
        return key, value
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value
