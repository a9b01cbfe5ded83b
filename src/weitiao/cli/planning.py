"""`weitiao plan`: the memory of training, before anything is loaded."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitiao.cli.option_group import option_group
from weitiao.cli.run_command import AsJson, Overrides, print_json
from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.pipeline.planning import MemoryPlan

BAR = 30  # characters
NAMES = {
    "frozen": Message("frozen weights"),
    "trained": Message("trained weights"),
    "gradients": Message("gradients"),
    "optimizer": Message("optimizer"),
    "activations": Message("activations"),
    "temporaries": Message("temporaries"),
    "allocator": Message("allocator"),
    "runtime": Message("runtime"),
}
COLORS = ("blue", "green", "yellow", "magenta", "cyan", "white", "red", "bright_black")


OPTIONS: dict[str, tuple[Any, Any]] = {
    "length": (Annotated[int, typer.Option(min=8, help="Tokens of a row.")], 512),
    "tokens": (
        Annotated[int | None, typer.Option(min=8, help="Tokens that run at once; default: as training chooses.")],
        None,
    ),
    "gpu": (Annotated[str, typer.Option(help="Memory of one GPU, as in 24GB; default: this machine.")], ""),
    "gpus": (Annotated[int, typer.Option(min=1, help="How many.")], 1),
    "sharding": (
        Annotated[
            str,
            typer.Option(help="What they shard: none, zero1, zero2, zero3 (FSDP); only planned, train does not shard yet."),
        ],
        "none",
    ),
}


@option_group("device", OPTIONS, lambda values: values)
def plan(
    device: dict[str, Any],
    recipe: Annotated[str, typer.Argument(help="A recipe; or give --base.")] = "",
    overrides: Overrides = None,
    base: Annotated[str, typer.Option(help="A base model, instead of a recipe, as in Qwen/Qwen2.5-7B.")] = "",
    method: Annotated[str, typer.Option(help="With --base: how it is trained.")] = "lora",
    objective: Annotated[str, typer.Option(help="With --base: what is trained.")] = "sft",
    json: AsJson = False,
) -> None:
    """Plan memory: what training takes, part by part, whether it fits, and what would make it fit."""
    from weitiao.pipeline.planning import plan_memory, plan_request

    changes = tuple(overrides or ())
    if base:
        changes = (*((recipe,) if recipe else ()), *changes)  # --base, then key=value: the first is no recipe
        recipe = ""
    planned = plan_memory(plan_request(recipe, changes, base, method, objective, **device))
    if json:
        print_json(planned.as_json())
        return
    _show(planned, Console(highlight=False))


def _show(plan: "MemoryPlan", console: Console) -> None:
    from weitiao.pipeline.planning import KV_CONTEXT, in_gib

    estimate = plan.estimate
    facts = {"base": plan.base, "parameters": plan.parameters, "tokens": estimate.tokens}
    console.print(Text(str(Message("{base}: {parameters:,} parameters, {tokens:,} tokens at once", **facts)), "bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for part, color in zip(estimate.parts, COLORS):
        bar = Text("█" * round(BAR * part.size / max(estimate.total, 1)), color)
        table.add_row(str(NAMES[part.name]), Text(in_gib(part.size), justify="right"), bar, Text(str(part.reason), "dim"))
    console.print(table)
    sizes = {"total": in_gib(estimate.total), "capacity": in_gib(plan.capacity)}
    if plan.fits:
        most = estimate.most_tokens(plan.capacity)
        line = Message("{total} of {capacity}: it fits, with up to {most:,} tokens at once", **sizes, most=most)
        console.print(Text(str(line), "bold green"))
    else:
        console.print(Text(str(Message("{total} of {capacity}: it does not fit", **sizes)), "bold red"))
    for x in plan.suggestions:
        text = Text(f"  {x.change}", "cyan") + Text(f"  {in_gib(x.total)}  ") + Text(str(x.price), "dim")
        console.print(text, soft_wrap=True)
    if not plan.fits and not plan.suggestions:
        console.print(str(Message("  nothing that is known here makes it fit: take a smaller base")))
    if plan.serving:
        cache = in_gib(KV_CONTEXT * plan.serving.cache)
        line = Message(
            "serving it merged: {weights} of weights in bf16, and {cache} for a conversation of {context:,} tokens",
            weights=in_gib(plan.serving.weights),
            cache=cache,
            context=KV_CONTEXT,
        )
        console.print(str(line), style="dim")
