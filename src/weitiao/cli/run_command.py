"""What all commands share: arguments, help in the reader's language, and errors as one sentence with an exit code."""

import errno
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from weitiao.core.errors import ERROR_FILE, FAILED, INTERRUPTED, TERMINATED, WeitiaoError
from weitiao.core.messages import Message, translate

if TYPE_CHECKING:
    from weitiao.core.recipe_sections import Source

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
PANELS = {
    "OPTIONS_PANEL_TITLE": Message("Options"),
    "ARGUMENTS_PANEL_TITLE": Message("Arguments"),
    "COMMANDS_PANEL_TITLE": Message("Commands"),
    "ERRORS_PANEL_TITLE": Message("Error"),
}

Target = Annotated[str, typer.Argument(help="A run folder, a PEFT adapter folder or a base model.")]
RecipeFile = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that ships with weitiao.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes: method.rank=32 train.learning_rate=1e-4")]
Allow = Annotated[list[str] | None, typer.Option("--allow", help="A finding of the preflight check to ignore, by name.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every decision with its reason, and every check.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="text=body: which column is what; repeatable; default: as in training."),
]
Encoding = Annotated[str, typer.Option(help="Text encoding of the file; auto: as in training, unless it is UTF-8.")]
Format = Annotated[str, typer.Option(help="File format; auto: as in training, or by the file's extension.")]
MaxRows = Annotated[
    int | None,
    typer.Option(min=1, help="Rows of the run that are compared; default: until about 2,000 answer tokens."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _TranslatedHelp(TyperCommand if TYPE_CHECKING else object):
    """Help in the reader's language, for a command and for the group of all."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _translate_help(self)

    def get_help_option(self, ctx: Any) -> Any:
        return _translate_option(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _translate_panels()
        super().format_help(ctx, formatter)


class Command(_TranslatedHelp, TyperCommand):
    """A command whose help is in the reader's language."""


class Group(_TranslatedHelp, TyperGroup):
    """All commands: help in the reader's language; what a user can fix is a sentence, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. The exit code tells which kind of error it was (core/errors.py)."""
        try:
            with _sigterm_interrupts():
                return super().invoke(ctx)
        except WeitiaoError as error:
            print_error(error.message)
            _write_error(error)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno in DISK_FULL:
                message = Message(
                    "writing to the disk failed: {error}. Free some disk space and run the command again (train: "
                    "--resume).",
                    error=str(error),
                )
            elif error.errno in NOT_WRITABLE:
                message = Message("{error}. Name a place where you may read and write.", error=str(error))
            else:
                raise
            print_error(message)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt as interrupt:
            Console(stderr=True).print(translate("stopped"))
            raise typer.Exit(next(iter(interrupt.args), INTERRUPTED)) from None


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what is half written is removed. Training and serving have handlers of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(TERMINATED)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def add_command(app: typer.Typer, function: Callable[..., None], name: str = "", panel: str = "") -> None:
    """Add a function as a command; its docstring is the help."""
    app.command(name or None, cls=Command, rich_help_panel=panel or None)(function)


def usage_error(template: str, **fields: Any) -> typer.BadParameter:
    """For wrong use that typer cannot see: exit code 2, with a hint at --help."""
    return typer.BadParameter(str(Message(template, **fields)))


def print_error(message: Message) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(str(message), style="bold red", markup=False)


def print_json(value: Any) -> None:
    """What is not measured is null: JSON has no NaN."""
    print(json.dumps(_without_nan(value), indent=1, ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split_names(text: str) -> list[str]:
    """
    >>> split_names("lora, full")
    ['lora', 'full']
    """
    return [x.strip() for x in text.split(",") if x.strip()]


def split_numbers(text: str, option: str) -> list[float]:
    """
    >>> split_numbers("0.7, 0.3", "--weights")
    [0.7, 0.3]
    """
    try:
        return [float(x) for x in split_names(text)]
    except ValueError:
        raise usage_error("{option}: {text!r} are not numbers with commas (0.7,0.3)", option=option, text=text) from None


def split_pairs(pairs: list[str] | None, option: str) -> dict[str, str]:
    """
    >>> split_pairs(["a=runs/a", "b=runs/b"], "--adapter")
    {'a': 'runs/a', 'b': 'runs/b'}
    """
    named = {name: value for name, _, value in (x.partition("=") for x in pairs or ())}
    if not all(name and value for name, value in named.items()) or len(named) < len(pairs or ()):
        raise usage_error("{option} takes NAME=PATH, each name once", option=option)
    return named


def source_settings(path: str, columns: list[str] | None, encoding: str, format: str, task: str = "") -> "Source":
    """A file named on the command line, with what is said of it."""
    from weitiao.core.recipe_sections import Source

    named = split_pairs(columns, "--columns") or None
    return Source(path=path, columns=named, encoding=encoding, format=format, task=task)


def _write_error(error: WeitiaoError) -> None:
    """The error as a record, where a program asks for it (multirun/subprocess_run.py)."""
    if file := os.environ.get(ERROR_FILE):
        record = {"type": type(error).__name__, "message": error.message.as_json()}
        Path(file).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def _translate_help(command: Any) -> None:
    command.help = translate(command.help or "") or None
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = translate(parameter.help)


def _translate_option(option: Any) -> Any:
    if option is not None:
        option.help = translate("Show this message and exit.")
    return option


def _translate_panels() -> None:
    """The titles that typer draws itself."""
    from typer import rich_utils

    for name, title in PANELS.items():
        if hasattr(rich_utils, name):
            setattr(rich_utils, name, str(title))
