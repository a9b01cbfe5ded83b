"""Commands about recipes: init writes one, explain and schema say what its keys mean."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weitiao.cli.run_command import print_json, usage_error
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message, translate


def init(
    data: Annotated[str | None, typer.Argument(help="A file, a folder or a pattern of files (data/*.jsonl).")] = None,
    out: Annotated[str, typer.Option(help="The recipe file to write.")] = "recipe.yaml",
    objective: Annotated[str, typer.Option(help="What is trained; default: by the columns.")] = "",
    base: Annotated[str, typer.Option(help="The base model; default: a small one that fits the objective.")] = "",
    encoding: Annotated[str, typer.Option(help="Text encoding of the data; auto: UTF-8.")] = "auto",
    list_: Annotated[bool, typer.Option("--list", help="List the recipes that ship with weitiao.")] = False,
) -> None:
    """Write a commented recipe for your data, by looking at its rows."""
    if list_:
        _list_recipes()
        return
    if data is None:
        raise usage_error("give a file of data, or --list")
    if Path(out).exists():
        raise RecipeError("{file} exists already. Name another file with --out.", file=out)
    from weitiao.pipeline.starter_recipe import starter_recipe

    text = starter_recipe(data, objective, base, encoding)
    Path(out).write_text(text, encoding="utf-8")
    print(text)
    print(Message("written to {file}. Next: weitiao check {file}; weitiao train {file}", file=out))


def schema(out: Annotated[str | None, typer.Argument(help="A file; default: print.")] = None) -> None:
    """The recipe's JSON Schema, for editors."""
    import json

    from weitiao.cli import explain

    if out is None:
        print_json(explain.schema())
    else:
        Path(out).write_text(json.dumps(explain.schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def explain(
    key: Annotated[
        str, typer.Argument(help="A key (train.epochs), a section (train), a component (lora), or nothing.")
    ] = "",
) -> None:
    """What a recipe key or a component means, and its default."""
    from weitiao.cli import explain

    Console().print(explain.explain(key))


def _list_recipes() -> None:
    from weitiao.core.shipped_recipes import shipped_recipes

    table = Table(translate("recipe"), translate("what it does"))
    for name, file in shipped_recipes().items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        table.add_row(name, first.removeprefix("#").strip())
    Console().print(table)
    print(translate("Train one with `weitiao train NAME data=FILE out=FOLDER`."))
