"""Run: what happened. One folder on disk, through which the stations speak to one another. No torch.

recipe.yaml         the recipe, every key written out
resolved.json       decisions made for the user, each with its reason; environment, data facts, fingerprints
preflight.json      findings of the preflight check
events.jsonl        one event a line: step, validation, checkpoint, skip, rollback ...   (core/events.py)
data.jsonl          rows that were given in memory; also validation.jsonl, evaluate.jsonl
bad_rows.jsonl      rows that could not be used: file, line, byte offset, reason
suspects.jsonl      rows of steps that the guard skipped: loss, file, line, text
task_vector.safetensors  the task vector that an f_learning run subtracts
checkpoints/        what training can be resumed from
best/               the trained weights of the best step
adapter/            the same in PEFT's format, where PEFT knows the method
scores.json         scores before and after, each with n and interval
classes.json        what is behind scores of classes: each class, confusion matrix, mistakes, calibration
row_results.json    row by row what the scores were computed from, so that runs can be compared row by row
samples.jsonl       answers before and after
report.html         all of it, to look at
.lock               which process writes the Run now                                     (core/run_status.py)
"""

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from weitiao.core import event_log
from weitiao.core.callback import Callback
from weitiao.core.command import command
from weitiao.core.errors import RecipeError, RunError
from weitiao.core.events import EarlyStop, End, Event, Start, Step, as_json, from_json, kind_of
from weitiao.core.files import write_text
from weitiao.core.finding import Decision
from weitiao.core.messages import Message, joined
from weitiao.core.recipe import Recipe, read_recipe, with_rows_in, write_rows
from weitiao.core.run_html import run_html
from weitiao.core.run_status import EVENTS, LOCK, Status, lock, now, read_status

SHOWN_CHANGES = 3  # keys of another recipe
E = TypeVar("E", bound=Event)
Change = tuple[str, Any, Any]  # key, was, is

TOKENIZER = "tokenizer"  # folder of a tokenizer that the run extended
ROWS = re.compile(r"(data|validation|evaluate|vocabulary)(-\d+)?\.jsonl")  # rows that the recipe held in memory
RECORDS = {
    LOCK, EVENTS, "recipe.yaml", "resolved.json", "preflight.json", "bad_rows.jsonl", "scores.json", "classes.json",
    "row_results.json", "samples.jsonl", "exam_items.jsonl", "forgetting.jsonl", "prompted.json",
    "task_vector.safetensors", TOKENIZER,
}  # fmt: skip


@dataclass
class Run:
    """One folder. A name ending in .jsonl is a record of many lines, any other a JSON value."""

    folder: Path
    callbacks: list[Callback] = field(default_factory=list)
    """They are told every event as it is logged."""
    can_write: bool = True
    """False in all processes but the main one."""
    previous: Path | None = None
    """Where an older Run of the same folder was moved."""

    @classmethod
    def create(cls, recipe: Recipe, overwrite: bool = False) -> "Run":
        """A new Run folder with its recipe.

        Args:
            overwrite: move an older Run of the same folder out of the way.

        Raises:
            RunError: the folder is not empty, and holds more than the records of a Run without a step.
        """
        folder, previous = Path(recipe.out), None
        if folder.is_file():
            raise RunError("out: {folder} is a file; it must be a folder that does not exist yet.", folder=folder)
        if folder.exists() and any(folder.iterdir()):
            has_result = not _holds_only_records(folder)
            if has_result and not overwrite:
                raise RunError(_folder_in_use(folder, recipe))
            with lock(folder):
                previous = _move_away(folder) if has_result else _remove_records(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                "out: {folder} cannot be created ({error}). Name another folder with out=...",
                folder=folder,
                error=error.strerror,
            ) from None
        (folder / LOCK).touch()  # first of all: this folder is a Run's
        recipe = with_rows_in(recipe, folder)
        write_rows(recipe)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        run = cls(folder, previous=previous)
        run.log(Start(now(), recipe.base, recipe.method.name, recipe.objective.name))
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing Run.

        Raises:
            RunError: there is none.
        """
        folder = Path(folder)
        if not folder.exists():
            raise RunError(
                "{folder} does not exist. `{command} runs` lists the runs here.", folder=folder, command=command()
            )
        if not (folder / "recipe.yaml").is_file():
            raise RunError(
                "{folder} is no Run (it has no recipe.yaml). `{command} runs` lists the runs here.",
                folder=folder,
                command=command(),
            )
        return cls(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process writes this Run.

        Raises:
            RunError: another process does.
        """
        if not self.can_write:
            yield
            return
        with lock(self.folder):
            for file in (*self.folder.glob("*.tmp"), *self.folder.glob("*/*.tmp")):
                if _is_temporary(file):  # of a killed process: nobody else writes now
                    file.unlink()
            yield

    # -- what it is -------------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """Reading it imports the method's and the objective's files, and with them torch."""
        return read_recipe(self.folder / "recipe.yaml")

    @property
    def status(self) -> Status:
        return read_status(self.folder)

    @property
    def is_finished(self) -> bool:
        return self.status.state == "finished"

    @property
    def scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """before, after -> by name: value, n, low, high ..."""
        return self.read("scores.json", {})

    @property
    def best_weights(self) -> Path:
        """The trained weights of the best step, once there are any."""
        return self.folder / "best" / "weights.safetensors"

    @property
    def checkpoints(self) -> list[Path]:
        """The newest first. Names that only look like one (step-4.bak) are somebody else's."""
        numbered = {x.name.removeprefix("step-"): x for x in (self.folder / "checkpoints").glob("step-*")}
        return [numbered[x] for x in sorted((x for x in numbered if x.isdecimal()), key=int, reverse=True)]

    def _repr_html_(self) -> str:
        """What a notebook shows: status, scores, loss curve."""
        losses = [x.loss for x in self.events(Step)]
        return run_html(str(self.folder), self.status.message, self.scores, losses)

    # -- events -----------------------------------------------------------------------------------------------------------

    def log(self, event: Event) -> None:
        """Append one event to events.jsonl, at once, and tell the callbacks."""
        if not self.can_write:
            return
        event_log.append(self.folder / EVENTS, as_json(event))
        for callback in self.callbacks:
            callback.on_event(self, event)

    @overload
    def events(self) -> Iterator[Event]: ...
    @overload
    def events(self, *kinds: type[E]) -> Iterator[E]: ...
    def events(self, *kinds: type) -> Iterator[Any]:
        """The events logged so far, or only those of some kinds."""
        names = {kind_of(kind) for kind in kinds}
        for record in event_log.read(self.folder / EVENTS):
            if (not names or record.get("event") in names) and (event := from_json(record)) is not None:
                yield event

    @property
    def history(self) -> list[dict[str, Any]]:
        """All events as plain dicts, ready for a DataFrame."""
        return [as_json(event) for event in self.events()]

    # -- records ----------------------------------------------------------------------------------------------------------

    def read(self, name: str, default: Any = None) -> Any:
        """A record; of .jsonl a list of its lines (torn ones are left out).

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / name
        if name.endswith(".jsonl"):
            return list(event_log.read(path))
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
        except ValueError:
            raise RunError("{path} is damaged: it is not JSON. Move it away, then try again.", path=path) from None

    def write(self, name: str, value: Any) -> None:
        """Replace a record as a whole; of .jsonl, one line for each value."""
        if not self.can_write:
            return
        lines = name.endswith(".jsonl")
        text = "".join(_json_line(x) for x in value) if lines else json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        write_text(self.folder / name, text)

    @property
    def decisions(self) -> dict[str, Decision]:
        """Everything that was chosen for the user, by key."""
        records = self.read("resolved.json", {}).get("decisions", {})
        return {key: Decision.from_json(key, record) for key, record in records.items()}

    def record(self, *decisions: Decision, **facts: Any) -> list[Change]:
        """Add decisions and facts to resolved.json.

        Returns:
            (key, was, is) of decisions that differ from an earlier record, and of what an `environment` differs in that
            can change the last bits of a result.
        """
        resolved = self.read("resolved.json", {})
        records = resolved.setdefault("decisions", {})
        was = {x.key: records[x.key]["value"] for x in decisions if x.key in records}
        changes = [(x.key, was[x.key], x.value) for x in decisions if was.get(x.key, x.value) != x.value]
        if "environment" in facts:
            old, new = _numeric_environment(resolved.get("environment")), _numeric_environment(facts["environment"])
            changes += [(key, old[key], new[key]) for key in new if key in old and old[key] != new[key]]
        records |= {x.key: x.as_json() for x in decisions}
        self.write("resolved.json", {**resolved, **facts})
        return changes


def rewind(run: Run, data_step: int) -> None:
    """Remove the events that were logged after a place in the data: a resumed run logs them again.

    (Not after a step: a run that was rolled back has been at some steps twice.)
    """
    ends = {kind_of(End), kind_of(EarlyStop)}
    events = [x for x in run.read(EVENTS) if x.get("data_step", 0) <= data_step and x.get("event") not in ends]
    run.write(EVENTS, events)
    if suspects := run.read("suspects.jsonl"):
        run.write("suspects.jsonl", [x for x in suspects if x["data_step"] <= data_step])


def _json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _holds_only_records(folder: Path) -> bool:
    """A Run of ours that ended before its first step: nothing was trained."""
    names = {x.name for x in folder.iterdir() if not _is_temporary(x)}
    names = {x for x in names if not ROWS.fullmatch(x)}
    return LOCK in names and names <= RECORDS and not any(Run(folder).events(Step))


def _is_temporary(file: Path) -> bool:
    """What `write_text` had not finished when its process was killed: <name>.<pid>.tmp"""
    return re.fullmatch(r".+\.\d+\.tmp", file.name) is not None


def _remove_records(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name == TOKENIZER:
            shutil.rmtree(file)
        elif file.name in RECORDS - {LOCK} or ROWS.fullmatch(file.name):
            file.unlink()


def _numeric_environment(environment: Any) -> dict[str, Any]:
    """Of an environment as resolved.json has it, what the last bits of a result depend on."""
    facts = environment if isinstance(environment, dict) else {}
    packages = facts.get("packages")
    machine = {key: facts[key] for key in ("device", "threads") if key in facts}
    return {**(packages if isinstance(packages, dict) else {}), **machine}


def _changes(run: Run, recipe: Recipe) -> list[Message]:
    """What a recipe would change of a run's; nothing where the run's cannot be read."""
    try:
        was, now = (flattened(x.model_dump(mode="json")) for x in (run.recipe, with_rows_in(recipe, run.folder)))
    except RecipeError:
        return []
    keys = [key for key in {**now, **was} if was.get(key) != now.get(key) and key != "out"]
    changes = [
        Message("{key} is {was} there, {now} here", key=x, was=was.get(x), now=now.get(x)) for x in keys[:SHOWN_CHANGES]
    ]
    return [*changes, Message("...")] if len(keys) > SHOWN_CHANGES else changes


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values: {"train.epochs": 2.0}."""
    if not isinstance(values, (dict, list)) or not values:
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {key: x for name, y in items for key, x in flattened(y, f"{prefix}.{name}".lstrip(".")).items()}


def _move_away(folder: Path) -> Path:
    """Rename the folder, so that its name is free again."""
    stamped = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    numbered = (stamped.with_name(f"{stamped.name}-{i}") for i in itertools.count(2))
    target = next(x for x in itertools.chain([stamped], numbered) if not x.exists())
    os.rename(folder, target)
    return target


def _folder_in_use(folder: Path, recipe: Recipe) -> Message:
    if not (folder / "recipe.yaml").exists():
        return Message("out: {folder} exists and holds other files. Name another folder with out=...", folder=folder)
    status = Run(folder).status
    facts = {"folder": folder, "status": status.message, "command": command()}
    if changes := _changes(Run(folder), recipe):
        return Message(
            "out: {folder} holds a run already ({status}). Its recipe is another one: {changes}. To train its weights "
            "further, with a learning rate schedule of its own: init_from={folder} out=... For a new one: another folder "
            "(out=...), or --overwrite (the old run is moved away, not deleted).",
            changes=joined("; ", changes),
            **facts,
        )
    if status.state in ("finished", "running"):
        return Message(
            "out: {folder} holds a run already ({status}). For a new one: another folder (out=...), or --overwrite (the "
            "old run is moved away, not deleted).",
            **facts,
        )
    return Message(
        "out: {folder} holds a run already ({status}). Go on with: {command} train --resume {folder}. For a new one: "
        "another folder (out=...), or --overwrite (the old run is moved away, not deleted).",
        **facts,
    )
