"""Options that belong together, as one argument of a command."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_option_group(
    group: str, options: Mapping[str, tuple[Any, Any]], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Give a command options of its own, which it gets as one argument.

    Args:
        group: the command's argument.
        options: of the command line: name -> (annotation, default).
        make: their values -> the argument.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [x for name, x in signature.parameters.items() if name != group]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in options.items()
        ]

        @wraps(command)
        def wrapped(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in options}
            command(**values, **{group: make(chosen)})

        vars(wrapped).pop("__wrapped__")  # or its own signature would be read
        hints = get_type_hints(command, include_extras=True)
        keyword = [x.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[x.name]) for x in own]
        wrapped.__signature__ = inspect.Signature([*keyword, *added])  # pyright: ignore[reportAttributeAccessIssue]
        wrapped.__annotations__ = {x.name: x.annotation for x in (*keyword, *added)}
        return wrapped

    return decorate


def chosen_options(values: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: neither nothing nor off."""
    return {key: x for key, x in values.items() if x not in ("", None, False)}
