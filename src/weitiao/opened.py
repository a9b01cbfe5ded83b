"""A model opened from a Run, a PEFT adapter or a base: ask it, measure it, fold it together. What comes after training.

The other half of pipeline.py: the same stations, for one who has a result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core import machine
from weitiao.core.desk import Desk
from weitiao.core.errors import ModelError, RunError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import OneOf, Recipe, Source
from weitiao.core.registry import find, names
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.data.prepare import Encoder, held_out_examples, held_out_sources
from weitiao.deploy.adapter import is_adapter, load_adapter, read_adapter_config
from weitiao.deploy.merge import Merged
from weitiao.deploy.merge import merge as merge_into
from weitiao.evaluate import story
from weitiao.evaluate.measure import default_metrics, measure
from weitiao.pipeline import Tokens, fits, load, open_tokens
from weitiao.plan import resolve
from weitiao.train.keep import load_kept


@dataclass
class Opened:
    """A model to use, from a Run, a PEFT adapter or a base."""

    model: TunableModel
    tokens: Tokens
    objective: Objective
    recipe: Recipe | None = None


def open_model(target: str, precision: str = "") -> Opened:
    """A Run folder, a PEFT adapter folder, or any base model.

    Args:
        precision: "": as the run was trained, or auto.

    Raises:
        ModelError, RunError: it is none of these, or the run has no result yet.
    """
    folder, device = Path(target), machine.device()
    recipe = Run.open(folder).recipe if (folder / "recipe.yaml").is_file() else None
    dtype = machine.precision(precision or (recipe.train.precision if recipe else "auto"))[0]
    if recipe is not None:
        weights = folder / "trained" / "weights.safetensors"
        if not weights.is_file():
            status = Run(folder).status
            raise RunError(
                f"{target} has no result yet ({status}). Go on with: {machine.command()} train --resume {target}"
            )
        tokens = open_tokens(recipe.base, recipe.revision, recipe.template)
        objective = learnt_objective(Run(folder))
        model = load(tokens, recipe.method.settle(folder), objective, dtype, device)[0]
        load_kept(Run(folder), model)
        return Opened(model, tokens, objective, recipe)
    objective: Any = find("objective", "sft")()
    if is_adapter(folder):
        config = read_adapter_config(folder)
        tokens = open_tokens(config["base_model_name_or_path"])
        model = load(tokens, method_of(config), objective, dtype, device)[0]
        load_adapter(model.attachment, folder)
        return Opened(model, tokens, objective)
    tokens, plain = open_tokens(target), Method.untouched()
    fits(tokens.folder, objective)
    return Opened(load(tokens, plain, objective, dtype, device)[0], tokens, objective)


def learnt_objective(run: Run) -> Objective:
    """The objective as it was when the run was trained: it knows what only the data knew (the classes)."""
    known = run.read("plan.json", {}).get("objective")
    return OneOf("objective").read(known) if known else run.recipe.objective  # pyright: ignore[reportReturnType]


def method_of(config: dict[str, Any]) -> Method:
    """The method that a PEFT adapter's config describes."""
    for name in names("method"):
        method = find("method", name).from_peft_config(config)  # pyright: ignore[reportAttributeAccessIssue]
        if method is not None:
            return method
    raise ModelError(f"no method here reads PEFT adapters of type {config.get('peft_type')}.")


def evaluate(
    target: str, desk: Desk, data: str | None = None, metrics: tuple[str, ...] = (), limit: int | None = None
) -> dict[str, Score]:
    """Measure a run (or any model) on its held-out rows, or on the file `data`.

    Raises:
        RunError: a model without a run, and no data.
    """
    opened = open_model(target)
    recipe = opened.recipe
    if recipe is None and data is None:
        raise RunError("a model without a run has no held-out rows of its own: name them with --data FILE.")
    recipe = recipe or Recipe(base=target, data=(Source(path=str(data)),), too_long="cut", out="")  # pyright: ignore
    sources = (Source(path=data),) if data else held_out_sources(recipe)  # pyright: ignore
    tokens, objective = opened.tokens, opened.objective
    context, too_long = resolve.choose_context(recipe, tokens.longest), resolve.choose_too_long(recipe, objective)
    encoder = Encoder(objective, tokens.processor, tokens.identity, context.value, too_long.value, desk)
    held_out = encoder.hold_out(held_out_examples(recipe, sources))
    if held_out is None:
        raise RunError(f"{target} held nothing out (validation: 0): name rows with --data FILE.")
    wishes = recipe.evaluate
    wanted = metrics or (wishes.metrics if wishes.metrics != "auto" else default_metrics(objective, held_out))
    limit, room = limit or wishes.limit, wishes.max_new_tokens
    return measure(opened.model, objective, held_out, wanted, limit, room, progress=desk.track).scores


@dataclass
class Told:
    """The story of a run."""

    in_short: str
    events: list[tuple[str, str]]
    choices: list[tuple[str, str, str]]


def why(target: str) -> Told:
    """What happened in a run, in words."""
    run = Run.open(target)
    return Told(story.in_short(run), list(story.story(run)), list(story.choices(run)))


def merge(target: str, out: str) -> Merged:
    """Fold a run's or an adapter's weights into the base: a folder that plain AutoModel opens."""
    opened = open_model(target, precision="fp32")
    return merge_into(opened.model, opened.tokens.tokenizer, Path(out))
