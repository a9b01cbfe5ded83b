"""The verbs for a result: ask it, talk with it, fold it into its base, make one of several. A face, like cli.py."""

import importlib
import json
import sys
from typing import Annotated, Any

import typer

from weitiao.cli.run_command import Target, make_reporter, opened, predicting, run_verb, several
from weitiao.core.errors import ModelError

Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="NAME=RUN: an adapter on the base that is the target; may be given several times."),
]
Prompts = Annotated[
    str | None, typer.Option("--prompts", help='JSON lines: {"prompt": ..., "adapter": NAME}; answers are JSON lines too.')
]


def generate(
    target: Target,
    prompt: Annotated[str | None, typer.Argument(help="What is asked; - reads standard input.")] = None,
    prompts: Prompts = None,
    adapter: Adapters = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base model's answer beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> None:
    """Ask once; or ask a file of prompts. Several adapters on one base answer side by side, or each its own lines."""

    def work() -> None:
        if (prompt is None) == (prompts is None):
            raise typer.BadParameter("give a prompt, or --prompts FILE")
        reporter, talk = make_reporter(quiet=prompts is not None), _talk()
        words = sys.stdin.read() if prompt == "-" else prompt or ""
        model = _open(target, adapter)
        if prompts is not None:
            for line in opened().answer_file(model, prompts, system, max_new_tokens, temperature, reporter):
                print(json.dumps(line, ensure_ascii=False))
            return
        turns = talk.beginning(system) + talk.asking(words)
        if model.adapters:
            reporter.console.print(talk.each(model, turns, max_new_tokens, temperature))
        elif compare:
            reporter.console.print(talk.side_by_side(model, turns, max_new_tokens, temperature))
        else:
            talk.say(model, turns, max_new_tokens, temperature)

    run_verb(work)


def chat(
    target: Target,
    adapter: Adapters = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base model's answers beside.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> None:
    """Talk with it; an empty line ends. With several adapters, @NAME at a line's beginning says which answers."""

    def work() -> None:
        reporter, talk = make_reporter(), _talk()
        model = _open(target, adapter)
        turns, now = talk.beginning(system), next(iter(model.adapters), "")
        while words := talk.hear(reporter.console):
            now, words = talk.addressed(words, model.adapters, now)
            turns += talk.asking(words)
            if compare:
                reporter.console.print(talk.side_by_side(model, turns, max_new_tokens, temperature, now))
            said = talk.say(model, turns, max_new_tokens, temperature, aloud=not compare, adapter=now)
            turns += talk.answering(said)

    run_verb(work)


def predict(
    target: Annotated[str, typer.Argument(help="A run folder.")],
    input: Annotated[str, typer.Option("--input", help="Rows: JSON lines, CSV, Parquet or plain text.")],
    output: Annotated[str, typer.Option("--output", help="JSON lines: each row with what is predicted.")],
    text: Annotated[str | None, typer.Option("--text", help="The column to read; default: as the run was trained.")] = None,
    task: Annotated[str, typer.Option("--task", help="Of a run that learnt many tasks: which one is asked.")] = "",
) -> None:
    """Answer every row of a file, in its order, with probabilities; the file may be larger than memory."""

    def work() -> None:
        reporter = make_reporter()
        done = predicting().predict_file(opened().open_model(target), input, output, reporter, text, task)
        told = f"{done.rows:,} rows are in {output}"
        told += f"; {done.truncated:,} were longer than the context: their end was not read" if done.truncated else ""
        told += f"; {done.bad:,} could not be read: {output}.bad_rows.jsonl" if done.bad else ""
        reporter.console.print(told, soft_wrap=True)

    run_verb(work)


def merge(target: Target, out: Annotated[str, typer.Argument(help="A new folder.")]) -> None:
    """Fold what was learnt into the base: a folder that plain AutoModel opens, checked after reloading."""

    def work() -> None:
        reporter = make_reporter()
        merged = several().merge_run(target, out)
        reporter.console.print(f"merged into {merged.folder}: reloaded, {merged.message}", soft_wrap=True)

    run_verb(work)


def combine(
    targets: Annotated[list[str], typer.Argument(help="Run folders or PEFT adapter folders that stand on one base.")],
    out: Annotated[str, typer.Option(help="A new folder.")],
    how: Annotated[str, typer.Option(help="average, sum, ties, dare or dare_ties.")] = "average",
    weights: Annotated[str, typer.Option(help="One each, with commas (0.7,0.3); default: 1 each.")] = "",
    density: Annotated[float | None, typer.Option(help="Share that ties and dare keep of each; default 0.2.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what dare drops; default 0.")] = None,
) -> None:
    """Make one of several: an adapter where that is exact (sums of LoRAs), else a merged model; checked after reloading."""

    def work() -> None:
        try:
            given = tuple(float(x) for x in weights.split(",") if x.strip())
        except ValueError:
            raise typer.BadParameter(f"--weights: {weights!r} are not numbers with commas (0.7,0.3)") from None
        reporter = make_reporter()
        made = several().merge_several(targets, out, reporter, how, given, density, seed)
        reporter.console.print(f"combined into {made.folder}, {made.form}: reloaded, {made.message}", soft_wrap=True)

    run_verb(work)


def _open(target: str, adapters: list[str] | None) -> Any:
    named = {name: folder for name, _, folder in (x.partition("=") for x in adapters or ())}
    if not all(name and folder for name, folder in named.items()) or len(named) < len(adapters or ()):
        raise typer.BadParameter("--adapter takes NAME=RUN, each name once")
    model = opened().open_many(target, named) if named else opened().open_model(target)
    if not model.objective.traits.generative:
        words = f"was trained with objective {model.objective.name} and writes nothing"
        raise ModelError(f"{target} {words}: ask it with `weitiao predict {target} --input FILE --output FILE`.")
    return model


def _talk() -> Any:
    return importlib.import_module("weitiao.cli.chat")
