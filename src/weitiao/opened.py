"""A model opened from a Run, a PEFT adapter or a base: ask it, measure it, fold it together. What comes after training.

The other half of pipeline.py: the same stations, for one who has a result.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from weitiao.core import machine
from weitiao.core.desk import Desk
from weitiao.core.errors import ModelError, RunError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.packages import file_sha256
from weitiao.core.recipe import Recipe, Source
from weitiao.core.registry import find
from weitiao.core.run import Run, write_text
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.data.prepare import Encoder, held_out_examples, held_out_sources
from weitiao.deploy.adapter import write_adapter
from weitiao.deploy.combine import Adapter, Combined, Way
from weitiao.deploy.merge import Merged, answers, prove, refuse_full, write_model
from weitiao.deploy.merge import merge as merge_into
from weitiao.evaluate import story
from weitiao.evaluate.measure import default_metrics, measure
from weitiao.learnt import Learnt, check_unchanged, fold, put_on, read_learnt, stand
from weitiao.model.load import Base
from weitiao.pipeline import Tokens, fits, load, open_tokens
from weitiao.plan import resolve


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
    device, learnt = machine.device(), read_learnt(target)
    dtype = machine.precision(precision or (learnt.precision if learnt else "auto"))[0]
    if learnt is None:
        tokens, objective = open_tokens(target), find("objective", "sft")()
        fits(tokens.folder, objective)  # pyright: ignore[reportArgumentType]
        model = load(tokens, Method.untouched(), objective, dtype, device)[0]  # pyright: ignore[reportArgumentType]
        return Opened(model, tokens, objective)  # pyright: ignore[reportArgumentType]
    tokens = open_tokens(learnt.base, learnt.revision, learnt.template)
    check_unchanged(learnt, tokens.below)
    model = load(tokens, learnt.method, learnt.objective, dtype, device)[0]
    learnt.fill(model)
    return Opened(model, tokens, learnt.objective, learnt.recipe)


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


# -- several results --------------------------------------------------------------------------------------------------


def on_one_base(targets: Sequence[str]) -> list[tuple[Learnt, Tokens]]:
    """Several results, and the words of each.

    Raises:
        ModelError: one is no result, or they stand on different base models.
    """
    found: list[tuple[Learnt, Tokens]] = []
    for target in targets:
        learnt = read_learnt(target)
        if learnt is None:
            raise ModelError(f"{target} is neither a run nor an adapter in PEFT's format, so there is no change in it.")
        tokens = open_tokens(learnt.base, learnt.revision, learnt.template)
        check_unchanged(learnt, tokens.below)
        found.append((learnt, tokens))
        if not same_ground(tokens, found[0][1]):
            words = "what was learnt on different base models does not go together"
            raise ModelError(f"{target} stands on {learnt.base}, but {targets[0]} on {found[0][0].base}: {words}.")
    return found


def same_ground(one: Tokens, other: Tokens) -> bool:
    """The same base weights, with the same results folded into them."""
    stacks = [[x.identity for x in tokens.below] for tokens in (one, other)]
    return stacks[0] == stacks[1] and (one.folder.samefile(other.folder) or _weights(one) == _weights(other))


def _weights(tokens: Tokens) -> list[str]:
    return [file_sha256(x) for x in sorted(tokens.folder.glob("*.safetensors"))]


def combine(
    targets: Sequence[str],
    out: str,
    desk: Desk,
    how: str = "average",
    weights: Sequence[float] = (),
    density: float | None = None,
    seed: int | None = None,
) -> Combined:
    """Make one of several results on one base: a PEFT adapter where that is exact, else a merged model; proven.

    Args: as in deploy/combine.py; what is left out is said.

    Raises:
        RecipeError: it is asked for in a way that cannot be.
        ModelError: they stand on different bases, one cannot be folded, or what was written answers differently.
    """
    folder, way = Path(out), Way.asked(how, len(targets), weights, density, seed)
    refuse_full(folder)
    results = on_one_base(targets)
    first, tokens = results[0]
    shares = ", ".join(f"{weight:g} x {target}" for weight, target in zip(way.weights, targets))
    desk.console.print(f"{way.words}: {shares}", soft_wrap=True, markup=False)
    base = stand(tokens.folder, tokens.below, Method.untouched(), torch.float32, machine.device(), tokens.processor)
    changes, adapters = task_vectors(base, [x for x, _ in results], tokens, desk)
    here = dict(base.model.named_parameters())
    for name, change in way.combine(changes).items():
        here[name].data.add_(change.to(here[name].device))
    wanted = answers(base.model, tokens.tokenizer)
    whole, form = way.form(adapters)
    if len({str(x.tokenizer.chat_template) for _, x in results}) > 1:
        form += f"; their chat templates differ, and it has that of {targets[0]}"
    if whole is None:
        proof = write_model(base.model, tokens.tokenizer, folder, wanted)
    else:
        write_adapter(*whole, folder, first.base)
        if first.template:
            (folder / "chat_template.jinja").write_text(tokens.tokenizer.chat_template, encoding="utf-8")
        proof = prove(folder, wanted, answers(open_model(out, "fp32").model.model, tokens.tokenizer))
    record = {**asdict(way), "of": [{"folder": str(x.folder), "identity": x.identity} for x, _ in results]}
    write_text(folder / "combination.json", json.dumps(record, indent=1) + "\n")
    return Combined(proof, form)


def task_vectors(
    base: Base, results: Sequence[Learnt], tokens: Tokens, desk: Desk
) -> tuple[list[dict[str, torch.Tensor]], list[Adapter | None]]:
    """What each result adds to the base weights, where it changes them, and its adapter; the base stays as it is."""
    before = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    changes: list[dict[str, torch.Tensor]] = []
    adapters: list[Adapter | None] = []
    for learnt in desk.track(results, "results"):
        model = put_on(base, learnt, tokens.processor)
        adapters.append(model.attachment.as_peft() if model.attachment.as_peft else None)
        fold(model, learnt)
        now = {name: weight.data for name, weight in base.model.named_parameters()}
        moved = {name: (now[name] - weight).cpu() for name, weight in before.items()}
        changes.append({name: x for name, x in moved.items() if bool(x.any())})
        for name, weight in before.items():
            now[name].copy_(weight)
    return changes, adapters
