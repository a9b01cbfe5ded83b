"""The command `export`: a model for another program."""

from typing import Annotated, Any

import typer
from rich.console import Console

from weitiao.cli.option_group import chosen_options, option_group
from weitiao.cli.run_command import AsJson, MaxRows, Target, print_json

SETTINGS: dict[str, tuple[Any, Any]] = {
    "type": (
        Annotated[
            str,
            typer.Option(
                help="GGUF and Ollama: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, q6_k, q5_k_m, q4_k_m; ONNX: fp32, "
                "fp16; vLLM: bf16, fp16, fp32. Default: of each format."
            ),
        ],
        "",
    ),
    "adapter": (Annotated[bool, typer.Option("--adapter", help="The adapter alone, for a server that loads it.")], False),
    "temperature": (Annotated[float | None, typer.Option(min=0, help="Ollama: default 0, greedy.")], None),
    "raw": (Annotated[bool, typer.Option("--raw", help="Ollama: without a template, where none is proven.")], False),
    "max_shard_size": (Annotated[str, typer.Option(help="vLLM, TensorRT-LLM: of one file of weights; default: 5GB.")], ""),
}
"""Of the formats."""


@option_group("settings", SETTINGS, chosen_options)
def export(
    target: Target,
    out: Annotated[str, typer.Argument(help="A new folder.")],
    format: Annotated[str, typer.Option("--format", "-f", help="gguf, onnx, ollama, peft, vllm or tensorrt_llm.")],
    settings: dict[str, Any],
    task: Annotated[str, typer.Option(help="Of a multi-task run: the task to write.")] = "",
    max_rows: MaxRows = None,
    as_json: AsJson = False,
) -> None:
    """Write a run for llama.cpp, ONNX Runtime, Ollama, PEFT, vLLM or TensorRT-LLM, and compare it with what was trained."""
    from weitiao import api

    report = api.export(target, out, format=format, task=task, max_rows=max_rows, verbose=not as_json, **settings)
    if as_json:
        verification = report.verification.as_json() if report.verification else None
        lines = [str(x) for x in report.lines]
        print_json({"folder": out, "format": format, "lines": lines, "verification": verification})
        return
    console = Console(highlight=False)
    for line in report.lines:
        console.print(str(line), soft_wrap=True, markup=False)
    for command in report.written.commands:
        console.print(command, style="cyan", soft_wrap=True, markup=False)
