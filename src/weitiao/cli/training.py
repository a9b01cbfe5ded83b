"""Commands that train: check, train, compare-methods, f-learning."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from weitiao.cli.run_command import (
    Allow,
    AsJson,
    Overrides,
    Quiet,
    RecipeFile,
    Verbose,
    print_json,
    split_names,
    split_numbers,
    split_pairs,
    usage_error,
)
from weitiao.core.errors import CheckError
from weitiao.core.messages import Message, translate

if TYPE_CHECKING:
    from weitiao.core.recipe import Recipe

RESUMABLE = ("interrupted", "stopped", "failed", "killed")


def check(recipe: RecipeFile, overrides: Overrides = None, allow: Allow = None, as_json: AsJson = False) -> None:
    """Preflight check: which tokens are trained on, leaks, stop tokens, three training steps. Nothing is kept."""
    from weitiao import api
    from weitiao.core.shipped_recipes import find_recipe
    from weitiao.multirun.stages import read_stages

    findings, error = [], None
    try:
        stages = read_stages(find_recipe(recipe), tuple(overrides or ()))
        findings = api.check(stages or read(recipe, overrides), allow=allow or (), verbose=0 if as_json else 2)
    except CheckError as refused:
        findings, error = refused.findings, refused
    if as_json:
        print_json([{"name": x.name, "level": x.level, "message": str(x.message)} for x in findings])
    if error is not None:
        raise error


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")] = None,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Resume an interrupted run folder.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move an older run in the same folder out of the way (it is kept).")
    ] = False,
    allow: Allow = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune: weitiao train recipe.yaml method.rank=32 out=runs/first"""
    from weitiao import api
    from weitiao.core.shipped_recipes import find_recipe
    from weitiao.multirun.stages import read_stages

    if (recipe is None) == (resume is None):
        raise usage_error("give a recipe, or --resume RUN (which takes the recipe of the run)")
    level, allow = 0 if quiet else 2 if verbose else 1, allow or []
    if resume is not None:
        api.resume(resume, allow=allow, verbose=level)
        return
    if stages := read_stages(find_recipe(str(recipe)), tuple(overrides or ())):
        if overwrite:
            raise usage_error("--overwrite is for a single run; of a recipe with stages, move the folder yourself")
        api.train_stages(stages, allow=allow, verbose=level)
        return
    settings = read(str(recipe), overrides)
    if not overwrite and _offers_to_resume(settings):
        api.resume(settings.out, allow=allow, verbose=level)
    else:
        api.train(settings, overwrite=overwrite, allow=allow, verbose=level)


def compare_methods(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[str, typer.Option(help="Names, separated by commas; default: every method.")] = "",
    as_json: AsJson = False,
) -> None:
    """Train one recipe with each method, and compare quality, trained weights, memory, speed and drift."""
    from weitiao import api
    from weitiao.multirun.compare_methods import SHORT

    settings = read(recipe, overrides)
    compared = api.compare_methods(settings, split_names(methods), verbose=not as_json)
    if as_json:
        print((Path(settings.out) / "comparison.json").read_text(encoding="utf-8"))
        return
    measured = next((x for x in compared if x.score), None)
    title = None
    if measured is not None and measured.score is not None:
        title = Message("{metric} on {n:,} rows, with 95 % intervals", metric=measured.metric, n=measured.score["n"])
    table = Table(*map(str, SHORT), title=str(title or ""))
    for x in compared:
        table.add_row(*x.summary)
    console = Console(highlight=False)
    console.print(table)
    page = Message("all figures and a chart: {file}", file=f"{settings.out}/comparison.html")
    console.print(str(page), soft_wrap=True)


def f_learning(
    recipe: Annotated[str, typer.Argument(help="A recipe: the new facts, and the method that learns them.")],
    overrides: Overrides = None,
    forget_data: Annotated[str, typer.Option(help="A file of the old facts, which are forgotten first.")] = "",
    lambdas: Annotated[str, typer.Option(help="How much of them is forgotten, separated by commas.")] = "0.1,0.3,0.7,1.5",
    eval: Annotated[
        list[str] | None, typer.Option("--eval", help="NAME=FILE: more data to measure on; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Forget old facts, then learn new ones, with several forgetting rates and plain fine-tuning to compare with."""
    from weitiao.multirun.forget_then_learn import forget_then_learn, head

    settings = read(recipe, overrides)
    if not forget_data:
        raise usage_error("give --forget-data FILE")
    console = Console(quiet=as_json, highlight=False)
    factors, files = split_numbers(lambdas, "--lambdas"), split_pairs(eval, "--eval")
    candidates = forget_then_learn(settings, forget_data, factors, files, lambda message: console.print(str(message)))
    if as_json:
        print((Path(settings.out) / "lambdas.json").read_text(encoding="utf-8"))
        return
    table = Table(*head(candidates))
    for line in (line for x in candidates for line in x.lines()):
        table.add_row(*line)
    console.print(table, translate("* lowest loss on the validation rows"))


def read(recipe: str, overrides: list[str] | None) -> "Recipe":
    """A recipe file, or one that ships with weitiao, with changes from the command line."""
    from weitiao.core.recipe import read_recipe
    from weitiao.core.shipped_recipes import find_recipe

    return read_recipe(find_recipe(recipe), tuple(overrides or ()))


def _offers_to_resume(recipe: "Recipe") -> bool:
    """The same recipe again, and its run was not finished: in a terminal, ask."""
    from weitiao.core.run import Run

    folder = Path(recipe.out)
    if not (folder / "recipe.yaml").is_file() or not sys.stdin.isatty():
        return False
    run = Run(folder)
    if run.status.state not in RESUMABLE or run.recipe.fingerprint != recipe.fingerprint:
        return False
    question = Message("{folder}: {status}. Resume it?", folder=folder, status=run.status.message)
    return typer.confirm(str(question), default=True)
