"""What the functions of api.py print: a spinner while torch loads, a warning about an unfinished run, the result."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console

from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.core.reporter import Reporter
    from weitiao.core.run import Run


def warn_unfinished(targets: Sequence[str], reporter: "Reporter") -> None:
    """Tell of a Run that was not trained to its end which step its weights are of."""
    from weitiao.pipeline.trained import read_trained

    for target in targets:
        if (trained := read_trained(target)) is not None and trained.unfinished is not None:
            reporter.warn(Message("{folder} is not finished: {status}", folder=target, status=trained.unfinished))


def import_pipeline(reporter: "Reporter | None" = None) -> None:
    """Import torch, transformers and the pipeline, which takes seconds; missing CPU kernels are compiled meanwhile."""
    with reporter.spin(Message("loading torch and transformers")) if reporter else nullcontext():
        from weitiao.pipeline.prebuild import compile_in_background

        compile_in_background()
        from weitiao.pipeline import train  # noqa: F401


def print_result(run: "Run", reporter: "Reporter") -> None:
    """In a notebook the Run itself shows its scores."""
    from weitiao.core import run_text

    if run.can_write and not reporter.console.is_jupyter:
        run_text.print_result(run, reporter.console)


def reporter_for(verbose: bool | int) -> "Reporter":
    from weitiao.core.reporter import Reporter

    return Reporter(Console(quiet=not verbose, highlight=False), verbose=int(verbose) > 1)
