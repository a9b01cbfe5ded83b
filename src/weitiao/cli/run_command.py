"""What the verbs of the command line share: their errors are words, and what is slow to bring comes late."""

import errno
import importlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from weitiao.core.errors import FAILED, INTERRUPTED, WeitiaoError

Target = Annotated[str, typer.Argument(help="A run folder, a PEFT adapter folder or a base model.")]


def pipeline() -> Any:
    """The pipeline brings torch and transformers: several seconds that `--help` and `schema` need not wait for, and in
    which kernels are compiled where there are none yet."""
    importlib.import_module("weitiao.model.kernels.library").compile_in_background()
    return importlib.import_module("weitiao.pipeline.train")


def opened() -> Any:
    """What one does with a result; as slow to bring as the pipeline."""
    return importlib.import_module("weitiao.pipeline.inference")


def measuring() -> Any:
    """Scores and history."""
    return importlib.import_module("weitiao.pipeline.evaluate")


def several() -> Any:
    """The same for several results at once."""
    return importlib.import_module("weitiao.pipeline.merging")


def predicting() -> Any:
    """The same for a file of rows."""
    return importlib.import_module("weitiao.pipeline.predict")


def make_reporter(quiet: bool = False) -> Any:
    """The terminal as a desk."""
    return importlib.import_module("weitiao.core.reporter").Reporter(Console(quiet=quiet, highlight=False))


def run_verb(work: Callable[[], Any]) -> Any:
    """Errors that a user can mend are words, not tracebacks; the exit code says which kind."""
    try:
        return work()
    except WeitiaoError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(str(error), style="bold red", markup=False)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"the disk refuses: {error}. Make room, then go on with --resume.", style="bold red", markup=False
        )
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        raise typer.Exit(INTERRUPTED) from None
