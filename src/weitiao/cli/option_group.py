"""Options that several commands share, or that are many: a command gets them as one argument."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., None]


def option_group(
    argument: str, options: Mapping[str, tuple[Any, Any]], build: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Gives a command these options.

    Args:
        argument: of the command, in whose place they are.
        options: name -> (its annotation for typer, its default).
        build: their values by name -> what the command gets.
    """

    def decorated(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [x for name, x in signature.parameters.items() if name != argument]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in options.items()
        ]

        @wraps(command)
        def wrapped(**values: Any) -> None:
            command(**{argument: build({name: values.pop(name) for name in options}), **values})

        vars(wrapped).pop("__wrapped__")  # or its own signature would be read
        hints = get_type_hints(command, include_extras=True)
        keyword = [x.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[x.name]) for x in own]
        wrapped.__signature__ = inspect.Signature([*keyword, *added])  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {x.name: x.annotation for x in (*keyword, *added)}
        return wrapped

    return decorated


def chosen_options(values: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: neither nothing nor off."""
    return {key: x for key, x in values.items() if x not in ("", None, False)}
