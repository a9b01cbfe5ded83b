"""Commands that use a result: generate, chat, predict, merge."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from weitiao.cli import chat as dialogue
from weitiao.cli.option_group import option_group
from weitiao.cli.run_command import (
    Columns,
    Encoding,
    Format,
    MaxRows,
    Target,
    source_settings,
    split_numbers,
    split_pairs,
    usage_error,
)
from weitiao.cli.sampling_options import with_sampling_options
from weitiao.core.engine import SamplingParams
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.pipeline.inference import Model

Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="NAME=RUN: an adapter on the base model TARGET; repeatable.")
]
Prompts = Annotated[
    str | None, typer.Option("--prompts", help='JSON lines: {"prompt": ..., "adapter": NAME}; answers are JSON lines too.')
]
System = Annotated[
    str | None, typer.Option(help='A system message; default: that of the training rows, if they had one. "": none.')
]
Overlong = Annotated[
    str,
    typer.Option(
        help="Conversations that are too long: error; drop_turns: leave out exchanges; auto: drop_turns if trained with it."
    ),
]
Answers = Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt; more than one: JSON.")]
LogProbs = Annotated[
    int | None, typer.Option(min=0, help="JSON with each token's log-probability and this many of the most probable ones.")
]


@with_sampling_options
def generate(
    target: Target,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    prompts: Prompts = None,
    adapter: Adapters = None,
    system: System = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answer next to it.")] = False,
    n: Answers = 1,
    logprobs: LogProbs = None,
    overlong: Overlong = "auto",
    *,
    sampling: SamplingParams,
) -> None:
    """Answer a prompt, or a file of prompts. Several adapters answer next to one another, or each its own lines."""
    if (prompt is None) == (prompts is None):
        raise usage_error("give a prompt, or --prompts FILE")
    text, sampling = sys.stdin.read() if prompt == "-" else prompt or "", replace(sampling, top_logprobs=logprobs)
    model = _load(target, adapter, overlong)
    dialogue.tell_system_message(model, system)
    dialogue.tell_slow_engine(model)
    console = Console(quiet=prompts is not None, highlight=False)
    if prompts is not None:
        from weitiao.core.reporter import Reporter
        from weitiao.pipeline.answers import answer_file

        for line in answer_file(model, prompts, system, sampling, n, Reporter(console)):
            print(json.dumps(line, ensure_ascii=False))
        return
    settings: dict[str, Any] = {"sampling": sampling, "system": system}
    messages = [{"role": "user", "content": text}]
    if n > 1 or logprobs is not None:
        from weitiao.pipeline.answers import answer_messages

        print(json.dumps(answer_messages(model, messages, system, sampling, n), ensure_ascii=False))
    elif model.adapters:
        console.print(dialogue.all_answers(model, messages, settings))
    elif compare:
        console.print(dialogue.compare_with_base(model, messages, settings))
    else:
        dialogue.print_answer(model, messages, settings)


@with_sampling_options
def chat(
    target: Target,
    adapter: Adapters = None,
    system: System = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answers next to it.")] = False,
    overlong: Overlong = "auto",
    *,
    sampling: SamplingParams,
) -> None:
    """Chat with a model; an empty line ends. With several adapters, @NAME at the start of a line chooses one."""
    model, console = _load(target, adapter, overlong), Console(highlight=False)
    if model.assets.continues_text:
        raise ModelError(
            "{target} continues plain text and has no turns to chat in. Give it the beginning of a text: "
            'weitiao generate {target} "..."',
            target=target,
        )
    dialogue.tell_system_message(model, system)
    dialogue.tell_slow_engine(model)
    settings: dict[str, Any] = {"sampling": sampling, "system": system}
    messages: dialogue.Messages = []
    name = next(iter(model.adapters), "")
    with model.caching_prefixes():
        while text := dialogue.read_line(console):
            name, text = dialogue.split_address(text, model.adapters, name)
            messages.append({"role": "user", "content": text})
            chosen = {**settings, "adapter": name}
            dialogue.tell_dropped_turns(model, messages, chosen)
            if compare:
                console.print(dialogue.compare_with_base(model, messages, chosen))
                answer = model.generate(messages, **chosen)
            else:
                answer = dialogue.print_answer(model, messages, chosen)
            messages.append({"role": "assistant", "content": answer})


def predict(
    target: Annotated[str, typer.Argument(help="A run folder.")],
    input: Annotated[str, typer.Option("--input", help="Rows: JSON lines, CSV, Parquet or plain text.")],
    output: Annotated[str, typer.Option("--output", help="JSON lines: each row with what is predicted.")],
    text: Annotated[str | None, typer.Option("--text", help="The column to read; default: as the run was trained.")] = None,
    task: Annotated[str, typer.Option("--task", help="Of a multi-task run: which task.")] = "",
    columns: Columns = None,
    encoding: Encoding = "auto",
    format: Format = "auto",
) -> None:
    """Predict every row of a file, in order, with probabilities; the file may be larger than memory."""
    from weitiao import api
    from weitiao.core.reporter import Reporter

    reporter = Reporter(Console(highlight=False))
    with reporter.spin(Message("loading the model")):
        model = api.load(target)
        from weitiao.pipeline.predict import predict_file
    settings = source_settings(input, columns, encoding, format, task)
    report = predict_file(model, input, output, reporter, text, task, settings)
    if report.bad:
        facts = {"rows": report.rows, "total": report.rows + report.bad, "output": output}
        reporter.say(Message("{rows:,} rows are in {output}, of {total:,} in the file", **facts))
    else:
        reporter.say(Message("{rows:,} rows are in {output}", rows=report.rows, output=output))
    if report.truncated:
        reporter.say(Message("{n:,} of them were longer than max_length: their end was not read", n=report.truncated))
    if report.bad:
        reporter.say(Message("{n:,} rows are unusable: {file}", n=report.bad, file=f"{output}.bad_rows.jsonl"))


COMBINE: dict[str, tuple[Any, Any]] = {
    "weights": (
        Annotated[str, typer.Option(help="Of several: one each, separated by commas (0.7,0.3); default: 1 each.")],
        "",
    ),
    "density": (Annotated[float | None, typer.Option(help="Fraction that ties and dare keep; default: 0.2.")], None),
    "seed": (Annotated[int | None, typer.Option(help="Of what dare drops; default: 0.")], None),
    "rank": (
        Annotated[int | None, typer.Option(help="Of the LoRA that svd writes; default: the highest of theirs.")],
        None,
    ),
}


def _as_combine_options(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**chosen, "weights": split_numbers(chosen["weights"], "--weights")}


@option_group("combine", COMBINE, _as_combine_options)
def merge(
    targets: Annotated[
        list[str], typer.Argument(help="A run or adapter (or several on one base model), then a new folder, unless --out.")
    ],
    combine: dict[str, Any],
    out: Annotated[str, typer.Option(help="The new folder; default: the last of TARGETS.")] = "",
    method: Annotated[
        str, typer.Option(help="Of several: linear, task_arithmetic, ties, dare_linear, dare_ties or svd.")
    ] = "linear",
    dtype: Annotated[str, typer.Option(help="Store the model in fp32, bf16 or fp16; auto: as its base.")] = "auto",
    task: Annotated[str, typer.Option(help="Of a multi-task run: the task to write.")] = "",
    max_rows: MaxRows = None,
    max_shard_size: Annotated[str, typer.Option(help="Of one file of weights: 500MB, 5GB.")] = "5GB",
) -> None:
    """Merge a run into its base model (a folder that plain transformers opens), or several runs into one."""
    from weitiao import api

    if not out and len(targets) < 2:
        raise usage_error("give a run and a new folder: weitiao merge RUN FOLDER")
    if not out:
        *targets, out = targets
        if len(targets) == 1 and ((Path(out) / "recipe.yaml").is_file() or (Path(out) / "adapter_config.json").is_file()):
            raise usage_error("{out} is a result itself: to merge both into one, name a new folder with --out", out=out)
    if len(targets) == 1 and (method != "linear" or any(x not in ([], None) for x in combine.values())):
        raise usage_error("--method, --weights, --density, --seed and --rank are for several runs, and here is one")
    options: dict[str, Any] = {"dtype": dtype, "task": task, "max_rows": max_rows, "max_shard_size": max_shard_size}
    report = api.merge(targets, out, method=method, **options, **combine, verbose=True)
    message = Message(
        "merged into {folder}, {form}, {size}; reloaded: {check}",
        folder=report.folder,
        form=report.form,
        size=report.size,
        check=report.message,
    )
    if report.remark:
        message = Message("{message}\n{remark}", message=message, remark=report.remark)
    Console(highlight=False).print(str(message), soft_wrap=True)


def _load(target: str, adapters: list[str] | None, overlong: str) -> "Model":
    from weitiao import api
    from weitiao.core.reporter import Reporter

    with Reporter(Console(highlight=False)).spin(Message("loading the model")):
        model = api.load(target, adapters=split_pairs(adapters, "--adapter"), overlong=overlong)
    if not model.objective.traits.generative:
        raise ModelError(
            "{target} was trained with objective {objective}, which does not generate text: "
            "use `weitiao predict {target} --input FILE --output FILE`.",
            target=target,
            objective=model.objective.name,
        )
    return model
