"""Options of commands that generate text, as SamplingParams (core/engine.py)."""

from typing import Annotated, Any

import typer

from weitiao.cli.option_group import option_group
from weitiao.core.engine import SamplingParams

OPTIONS: dict[str, tuple[Any, Any]] = {
    "max_new_tokens": (Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")], 256),
    "temperature": (Annotated[float, typer.Option(min=0, help="0 is greedy.")], 0.0),
    "top_p": (
        Annotated[float, typer.Option(min=0, max=1, help="Draw from the fewest tokens that reach this probability.")],
        1.0,
    ),
    "top_k": (Annotated[int, typer.Option(min=0, help="Draw from the k most probable tokens; 0: all.")], 0),
    "min_p": (
        Annotated[float, typer.Option(min=0, max=1, help="Draw from tokens with at least this fraction of the largest.")],
        0.0,
    ),
    "repetition_penalty": (
        Annotated[float, typer.Option(min=0.01, help="Above 1: tokens that were there before are less probable.")],
        1.0,
    ),
    "seed": (Annotated[int | None, typer.Option(help="Of drawn tokens; default: a new one each time.")], None),
    "stop": (
        Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer; repeatable.")],
        None,
    ),
}  # fmt: skip


def _sampling(chosen: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**{**chosen, "stop": tuple(chosen["stop"] or ())})


with_sampling_options = option_group("sampling", OPTIONS, _sampling)
"""Gives a command the options above, which it gets as one argument `sampling`."""
