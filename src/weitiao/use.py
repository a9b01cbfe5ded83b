"""The verbs for a result: ask it, talk with it, fold it into its base, make one of several. A face, like cli.py."""

import importlib
import sys
from typing import Annotated, Any

import typer

from weitiao.verb import Target, desk_of, opened, run_verb


def generate(
    target: Target,
    prompt: Annotated[str, typer.Argument(help="What is asked; - reads standard input.")],
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base model's answer beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> None:
    """Ask once."""

    def work() -> None:
        desk, talk = desk_of(), _talk()
        words = sys.stdin.read() if prompt == "-" else prompt
        model = opened().open_model(target)
        turns = talk.beginning(system) + talk.asking(words)
        if compare:
            desk.console.print(talk.side_by_side(model, turns, max_new_tokens, temperature))
        else:
            talk.say(model, turns, max_new_tokens, temperature)

    run_verb(work)


def chat(
    target: Target,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base model's answers beside.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> None:
    """Talk with it; an empty line ends."""

    def work() -> None:
        desk, talk = desk_of(), _talk()
        model = opened().open_model(target)
        turns = talk.beginning(system)
        while words := talk.hear(desk.console):
            turns += talk.asking(words)
            if compare:
                desk.console.print(talk.side_by_side(model, turns, max_new_tokens, temperature))
            turns += talk.answering(talk.say(model, turns, max_new_tokens, temperature, aloud=not compare))

    run_verb(work)


def merge(target: Target, out: Annotated[str, typer.Argument(help="A new folder.")]) -> None:
    """Fold what was learnt into the base: a folder that plain AutoModel opens, checked after reloading."""

    def work() -> None:
        desk = desk_of()
        merged = opened().merge(target, out)
        desk.console.print(f"merged into {merged.folder}: reloaded, {merged.words}", soft_wrap=True)

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
        desk = desk_of()
        made = opened().combine(targets, out, desk, how, given, density, seed)
        desk.console.print(f"combined into {made.proof.folder}, {made.form}: reloaded, {made.proof.words}", soft_wrap=True)

    run_verb(work)


def _talk() -> Any:
    return importlib.import_module("weitiao.talk")
