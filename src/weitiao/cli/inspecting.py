"""`weitiao data inspect`: look at files before they are trained on."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitiao.cli.run_command import AsJson, Columns, Encoding, Quiet, print_json, split_pairs, usage_error
from weitiao.core.messages import Message

SIGNS = {"must": ("✗", "bold red"), "should": ("!", "bold yellow"), "look": ("·", "cyan")}
SHOWN_EXAMPLES = 2
SHOWN_CUT_OFFS = 6
PAGE_HEAD = 1024  # bytes: the title is in them


def inspect(
    files: Annotated[list[str], typer.Argument(help="Files of data, folders or patterns.")],
    base: Annotated[str, typer.Option(help="A base model: lengths in its tokens, its chat template.")] = "",
    eval: Annotated[
        list[str] | None, typer.Option(help="A file to evaluate on, whose rows should not be in the data; repeatable.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also look for wrong labels; takes longer.")] = False,
    out: Annotated[str, typer.Option(help="The page to write.")] = "inspection.html",
    columns: Columns = None,
    encoding: Encoding = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 1,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look at data: what to mend first, then lengths, languages, duplicates, labels, answers, personal data, leaks."""
    from weitiao.core.recipe_sections import Source
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.inspect import InspectionRequest
    from weitiao.pipeline.inspect import inspect as look_at
    from weitiao.pipeline.inspection_record import inspection_record, plain, write_report

    if out and not Path(out).suffix:
        raise usage_error("--out {out}: name a file, as in --out report.html", out=out)
    if out:
        _check_page(Path(out))
    named = split_pairs(columns, "--columns") or None
    sources = tuple(Source(path=x, columns=named, encoding=encoding) for x in files)
    held_out = tuple(Source(path=x, columns=named, encoding=encoding) for x in eval or ())
    model = None
    if base:
        from weitiao.pipeline.inspect_model import model_look

        model = model_look(base)
    console = Console(highlight=False, quiet=quiet or json)
    request = InspectionRequest(sources, held_out, labels, seed, base)
    record = inspection_record(look_at(request, model, Reporter(console)))
    if out:
        write_report(record, Path(out))
    if json:
        print_json(plain(record))
        return
    _show(record, console)
    if out:
        console.print(str(Message("everything, with more examples: {file}", file=out)), markup=False, soft_wrap=True)


def _check_page(file: Path) -> None:
    """Before anything is read: a page can be written here, and replaces nothing but an earlier page."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if not file.exists():
            return
        with open(file, "rb") as opened:
            head = opened.read(PAGE_HEAD)
    except OSError as error:
        raise usage_error("--out {out} cannot be written: {error}", out=file, error=error) from None
    if head and not (head.startswith(b"<!doctype html>") and b"weitiao</title>" in head):
        raise usage_error("--out {out} exists and is no page of weitiao: it would be overwritten. Name another.", out=file)


def _show(record: dict[str, Any], console: Console) -> None:
    """The summary: what to do, then the facts."""
    rows = record["rows"]
    console.print(Text(str(Message("{rows:,} rows: {accepted:,} can be used, {bad:,} cannot", **rows)), "bold"))
    if rows["excluded"]:
        console.print(str(Message("{excluded:,} rows say that they are not to be trained on", **rows)), markup=False)
    for x in record["files"]:
        console.print(Text(f"  {x['file']}: {x['columns']}", "dim"), soft_wrap=True)
    _show_advice(record, console)
    console.print()
    for line in _facts(record):
        console.print(str(line), markup=False, soft_wrap=True)
    if record.get("model"):
        _show_cut_offs(record["model"], console)


def _show_advice(record: dict[str, Any], console: Console) -> None:
    if not record["advice"]:
        console.print(Text(str(Message("nothing to do was found")), "green"))
    for number, x in enumerate(record["advice"], 1):
        sign, style = SIGNS[x["level"]]
        count = share_of(x) if x["rows"] else ""
        console.print(Text(f"{sign} {number}. ", style) + Text(f"{count}{x['what']}"), soft_wrap=True)
        for example in x["examples"][:SHOWN_EXAMPLES]:
            console.print(Text(f"     {example['where']}: ", "cyan") + Text(str(example["text"])), soft_wrap=True)
        console.print(Text(f"     → {x['remedy']}", "green"), soft_wrap=True)
    if record["command"]:
        text = Message("All that can be cleaned, in one command:")
        console.print(f"{text}\n     {record['command']}", markup=False, soft_wrap=True)


def share_of(x: dict[str, Any]) -> str:
    """'1,004 of 100,000 (1.0 %): '; with the interval where rows are a sample."""
    interval = "" if x["low"] == x["high"] else f" [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"
    share = f"{100 * x['share']:.1f} %{interval}"
    return str(Message("{n:,} of {total:,} ({share}): ", n=x["rows"], total=x["of"], share=share))


def _facts(record: dict[str, Any]) -> Iterator[Message]:
    for name, title in (("prompt", Message("characters of the prompt")), ("answer", Message("characters of the answer"))):
        if x := record["lengths"][name]:
            values = ", ".join(f"{_quantile(q)} {n:,}" for q, n in x["quantiles"])
            yield Message("{title}: {values}", title=title, values=values)
    turns = ", ".join(f"{n}: {rows:,}" for n, rows in record["turns"]["counts"][:8])
    yield Message("rows by turns: {turns}", turns=turns)
    scripts = ", ".join(f"{name} {n:,}" for name, n in list(record["scripts"]["main"].items())[:6])
    yield Message("rows by script: {scripts}", scripts=scripts)
    if languages := record.get("languages"):
        named = ", ".join(f"{x['name'] or '?'} {100 * x['share']:.1f} %" for x in languages["table"][:6])
        yield Message("languages of a sample of {n:,}: {languages}", n=languages["n"], languages=named)
    repetition = record["repetition"]
    yield Message(
        "duplicates: {exact:,} the same, {near:,} nearly the same",
        exact=repetition["exact"]["rows"],
        near=repetition["near"]["rows"],
    )
    if classes := record["classes"]["counts"]:
        named = ", ".join(f"{name} {n:,}" for name, n in classes[:8])
        yield Message("{n:,} classes: {classes}", n=record["classes"]["classes"], classes=named)
    if leaks := record.get("leakage"):
        yield Message("rows to evaluate on: {leaked:,} of {n:,} are in the data", leaked=leaks["leaked"], n=leaks["n"])
    if wrong := record.get("wrong_labels"):
        yield wrong_labels_line(wrong)


def wrong_labels_line(wrong: dict[str, Any]) -> Message:
    """How the look for wrong labels went."""
    if wrong.get("reason") == "no_labels":
        return Message("wrong labels: the rows have no labels, and their answers are no closed set")
    if wrong.get("reason") == "classes":
        return Message(
            "wrong labels: needs 2 to 200 classes of at least 5 rows; there are {classes}", classes=wrong["classes"]
        )
    return Message(
        "wrong labels: {rows:,} of {n:,} rows are suspicious; the model of the other rows is right on {accuracy:.1%}",
        rows=wrong["rows"],
        n=wrong["n"],
        accuracy=wrong["accuracy"],
    )


def _quantile(q: float) -> str:
    named = {0: Message("shortest"), 0.5: Message("median"), 1: Message("longest")}
    return str(named.get(q, f"{100 * q:g} %"))


def _show_cut_offs(model: dict[str, Any], console: Console) -> None:
    title = Message("tokens of {model}, {n:,} rows", model=model["name"], n=model["n"])
    console.print(str(title), markup=False)
    table = Table("max_length", str(Message("rows that lose their end")), str(Message("tokens that are lost")))
    for x in model["cut_offs"][-SHOWN_CUT_OFFS:]:
        interval = "" if x["low"] == x["high"] else f" [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"
        table.add_row(f"{x['max_length']:,}", f"{100 * x['share']:.1f} %{interval}", f"{100 * x['tokens']:.1f} %")
    console.print(table)
