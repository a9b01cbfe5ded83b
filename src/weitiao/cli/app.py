"""The command line: `weitiao init`, `check`, `train`, then use the result, measure it, merge it."""

import signal
import sys
from typing import Annotated, Any

import typer

from weitiao.cli.cleaning import clean, join, repair
from weitiao.cli.comparing import compare
from weitiao.cli.compression import compress
from weitiao.cli.export import export
from weitiao.cli.inference import chat, generate, merge, predict
from weitiao.cli.inspecting import inspect
from weitiao.cli.negatives import hard_negatives, out_of_scope, wrong_answers
from weitiao.cli.planning import plan
from weitiao.cli.recipes import explain, init, schema
from weitiao.cli.results import evaluate, exams, runs, verify, why
from weitiao.cli.reviewing import review
from weitiao.cli.run_command import Group, add_command
from weitiao.cli.serving import serve
from weitiao.cli.setup import bench_machine, doctor, download
from weitiao.cli.training import check, compare_methods, f_learning, train
from weitiao.cli.vocabulary import vocab
from weitiao.core.errors import FAILED, TERMINATED
from weitiao.core.messages import translate
from weitiao.core.version import VERSION

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
bench = typer.Typer(cls=Group, no_args_is_help=True)
data = typer.Typer(cls=Group, no_args_is_help=True)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """weitiao 微调: fine-tune a pretrained model on your own data, and be able to trust the result."""
    if version:
        print(VERSION)
        raise typer.Exit


@bench.callback()
def benches() -> None:
    """What this machine reaches, as a limit to compare training with."""


@data.callback()
def data_commands() -> None:
    """Look at data, clean them, put mended rows back, and make rows that show what is not right."""


for panel, commands in {
    translate("Start"): (init, doctor, download, explain, schema),
    translate("Train"): (plan, check, train, compare_methods, f_learning),
    translate("Use"): (generate, chat, predict),
    translate("Deploy"): (merge, compress, export, verify, serve),
    translate("Inspect"): (evaluate, exams, compare, review, runs, why),
}.items():
    for command in commands:
        add_command(app, command, command.__name__.replace("_", "-"), panel)
add_command(bench, bench_machine, "machine")
for command in (inspect, clean, join, repair, vocab, hard_negatives, out_of_scope, wrong_answers):
    add_command(data, command, command.__name__.replace("_", "-"))
app.add_typer(data, name="data", rich_help_panel=translate("Start"))
app.add_typer(bench, name="bench", rich_help_panel=translate("Inspect"))


def _leave(number: int, frame: Any) -> None:
    """SIGTERM while no command is at work: nothing is half written."""
    sys.exit(TERMINATED)


def main() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        app()
    except BrokenPipeError:
        sys.exit(FAILED)
    finally:  # an exception could not change the exit code any more, only end in a traceback
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
