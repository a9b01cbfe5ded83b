"""Options of commands that generate text, as SamplingParams (core/engine.py)."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

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


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options above, which it gets as one argument `sampling`."""
    signature = inspect.signature(command)
    own = [x for name, x in signature.parameters.items() if name != "sampling"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in OPTIONS.items()
    ]

    @wraps(command)
    def wrapped(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in OPTIONS}
        command(**values, sampling=SamplingParams(**{**chosen, "stop": tuple(chosen["stop"] or ())}))

    vars(wrapped).pop("__wrapped__")  # or its own signature would be read
    hints = get_type_hints(command, include_extras=True)
    keyword = [x.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[x.name]) for x in own]
    wrapped.__signature__ = inspect.Signature([*keyword, *added])  # pyright: ignore[reportAttributeAccessIssue]
    wrapped.__annotations__ = {x.name: x.annotation for x in (*keyword, *added)}
    return wrapped
