"""Run: what happened. One folder on disk and its journal; how stations speak to each other.

recipe.yaml       what was asked, every key written out
resolved.json         what was chosen for the user, and why; the environment; what the data held
preflight.json        what the pre-flight found
events.jsonl     one line an event: step, validation, save, resume, skip, return ...
bad_rows.jsonl    rows that could not be used: file, line, byte offset, reason
suspects.jsonl    rows of steps that the guard skipped: each row's own loss, file and line, text
task_vector.safetensors   what an f_learning run takes away
checkpoints/           what training can go on from
best/             the learnt weights of the best state
adapter/          the same in PEFT's format, where PEFT knows the method
scores.json       figures before and after, each with n and interval
row_results.json     row by row what the figures were made of, so that two runs can be compared row by row
samples.jsonl     answers before and after
report.html       all of it, to look at
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weitiao.core.command import command
from weitiao.core.errors import RunError
from weitiao.core.files import write_text
from weitiao.core.finding import Decision
from weitiao.core.recipe import Recipe, read_recipe, with_rows_in, write_rows

try:
    import fcntl
except ImportError:
    fcntl = None


@dataclass
class Run:
    """One folder. `listeners` hear every journal line as it is written (the progress bar, the studio)."""

    folder: Path
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    can_write: bool = True
    """False on all machines but the first."""
    aside: Path | None = None
    """Where an older run of this name was put."""

    @classmethod
    def create(cls, recipe: Recipe, replace: bool = False) -> "Run":
        """A new, empty Run folder with its recipe.

        Raises:
            RunError: the folder exists already and is not empty.
        """
        folder, aside = Path(recipe.out), None
        if folder.is_file():
            raise RunError(f"out: {folder} is a file; it must be a folder that does not exist yet.")
        if folder.exists() and any(folder.iterdir()):
            began = not _only_records(folder)
            if began and not replace:
                raise RunError(_taken(folder))
            with cls(folder).locked():
                aside = _put_aside(folder) if began else _begin_anew(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"out: {folder} cannot be made ({error.strerror}). Name another folder with out=...") from None
        (folder / ".lock").touch()  # first of all: this folder is a Run's
        recipe = with_rows_in(recipe, folder)
        write_rows(recipe)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        return cls(folder, aside=aside)

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing Run.

        Raises:
            RunError: there is none.
        """
        folder = Path(folder)
        if not (folder / "recipe.yaml").is_file():
            there = "is no Run (it has no recipe.yaml)" if folder.exists() else "does not exist"
            raise RunError(f"{folder} {there}. `{command()} runs` lists the runs here.")
        return cls(folder)

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.folder / "recipe.yaml")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process writes this run.

        Raises:
            RunError: another process is at it.
        """
        with open(self.folder / ".lock", "a") as lock:
            try:
                if fcntl is not None and self.can_write:  # Windows has no such lock
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                words = "is being written by another process right now. Wait for it, or stop it."
                raise RunError(f"{self.folder} {words}") from None
            if self.can_write:  # what a killed process was writing; nobody else writes now
                for left in (*self.folder.glob("*.tmp"), *self.folder.glob("*/*.tmp")):
                    if _is_left_over(left):
                        left.unlink()
            yield

    # -- the journal --------------------------------------------------------------------------------------------------

    def log_event(self, event: str, **facts: Any) -> None:
        """Write one line into the journal, at once, and tell whoever listens."""
        if not self.can_write:
            return
        line = {"event": event, **facts}
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line, ensure_ascii=False) + "\n")
        for listener in self.listeners:
            listener(line)

    def events(self, *events: str) -> Iterator[dict[str, Any]]:
        """The journal's lines, or only those of some events."""
        for line in _sound_lines(self.folder / "events.jsonl"):
            if "event" in line and (not events or line["event"] in events):
                yield line

    def rewind(self, position: int) -> None:
        """Forget what was written after a position in the data: resuming writes it again. (Not after a step: a run
        that went back has been at some steps twice.)"""
        if not self.can_write:
            return
        ends = ("interrupted", "finished", "stopped", "early_stop")
        kept = [x for x in self.events() if x.get("position", 0) <= position and x["event"] not in ends]
        self.write_lines("events.jsonl", kept)
        if suspects := self.read_lines("suspects.jsonl"):
            self.write_lines("suspects.jsonl", [x for x in suspects if x["position"] <= position])

    # -- records ------------------------------------------------------------------------------------------------------

    def write(self, name: str, value: Any) -> None:
        """A JSON record, replaced as a whole."""
        self._put(name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def write_lines(self, name: str, values: list[Any]) -> None:
        self._put(name, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in values))

    def append_lines(self, name: str, values: list[Any]) -> None:
        self.write_lines(name, [*self.read_lines(name), *values])

    def _put(self, name: str, text: str) -> None:
        if self.can_write:
            write_text(self.folder / name, text)

    def read(self, name: str, default: Any = None) -> Any:
        """A JSON record.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
        except ValueError:
            raise RunError(f"{path} is damaged: it is not JSON. Move it away, then ask again.") from None

    def read_lines(self, name: str) -> list[Any]:
        """A record of many lines, but for torn ones."""
        return list(_sound_lines(self.folder / name))

    @property
    def decisions(self) -> dict[str, Decision]:
        """Everything that was chosen for the user, by key."""
        records = self.read("resolved.json", {}).get("decisions", {})
        return {key: Decision.from_json(key, record) for key, record in records.items()}

    def record(self, *decisions: Decision) -> list[tuple[str, Any, Any]]:
        """Add decisions to resolved.json; (key, was, is) of those that differ from an earlier record."""
        resolved = self.read("resolved.json", {})
        records = resolved.setdefault("decisions", {})
        before = {x.key: records[x.key]["value"] for x in decisions if x.key in records}
        records |= {x.key: x.as_json() for x in decisions}
        self.write("resolved.json", resolved)
        return [(x.key, before[x.key], x.value) for x in decisions if before.get(x.key, x.value) != x.value]

    def stands_in(self, environment: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Write down where it runs; (key, was, is) of all that was another before and has a say in the last bits."""
        was = self.read("resolved.json", {}).get("environment", {})
        self.add_to_resolved(environment=environment)
        before, now = _with_a_say(was), _with_a_say(environment)
        return [(key, before[key], now[key]) for key in now if key in before and before[key] != now[key]]

    def add_to_resolved(self, **facts: Any) -> None:
        self.write("resolved.json", {**self.read("resolved.json", {}), **facts})

    @property
    def result(self) -> str:
        """Which step the result is of, and why; "" where there is none yet."""
        kept, last = self.read("best/step.json", {}).get("step"), [x["step"] for x in self.events("step")][-1:]
        if kept is None or not last:
            return ""
        held = any(x["loss"] is not None for x in self.events("validation"))
        why = f"the best by {self.recipe.train.best_metric}" if held else "the newest: nothing was held out to choose by"
        return f"the result is step {kept} of {last[0]}, {why}"

    @property
    def speed(self) -> str:
        """How fast it learnt, and which share of what the machine reaches that is; "" where that was not measured."""
        told = list(self.events("speed"))
        return encode_with_word_ids(told[-1]) if told else ""

    @property
    def status(self) -> str:
        """finished, interrupted at step N, running or stopped at step N, no step taken."""
        events = list(self.events("step", "interrupted", "finished", "early_stop", "stopped"))
        if not events:
            return "no step taken"
        last, steps = events[-1], [e["step"] for e in events if e["event"] == "step"]
        if last["event"] == "finished":
            return "finished"
        how = {"interrupted": "interrupted", "stopped": "stopped by the guard"}.get(last["event"], "unfinished")
        return f"{how} at step {steps[-1] if steps else 0}"


RECORDS = {
    ".lock",
    "recipe.yaml",
    "resolved.json",
    "preflight.json",
    "events.jsonl",
    "bad_rows.jsonl",
    "scores.json",
    "samples.jsonl",
    "task_vector.safetensors",
}


def encode_with_word_ids(speed: dict[str, Any]) -> str:
    """A journal's line on speed, in plain words."""
    words = [f"{speed['tokens_per_second']:,.0f} tokens/s"]
    if speed.get("share_of_limit") is not None:
        rates = f"{speed['gflop_per_second']:,.3g} GFLOP/s of {speed['limit_gflop_per_second']:,.3g}"
        words.append(f"{100 * speed['share_of_limit']:.0f} % of what this machine's matrix products reach ({rates})")
    if (spared := 100 * speed.get("ran_with_another_row", 0)) >= 1:
        words.append(f"{spared:.0f} % of the tokens begin a row as another one does, and ran there")
    return "; ".join(words)


def _sound_lines(path: Path) -> Iterator[dict[str, Any]]:
    """A file's JSON lines. The last line of a killed run may be torn."""
    for text in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _only_records(folder: Path) -> bool:
    """A run of ours that stopped before its first step: nothing was learnt in it."""
    there = {x.name for x in folder.iterdir() if not _is_left_over(x)}
    return ".lock" in there and there <= RECORDS and not list(Run(folder).events("step"))


def _is_left_over(file: Path) -> bool:
    """What `write_text` had not finished when its process was killed: <name>.<pid>.tmp"""
    return re.fullmatch(r".+\.\d+\.tmp", file.name) is not None


def _begin_anew(folder: Path) -> None:
    for name in RECORDS - {".lock"}:
        (folder / name).unlink(missing_ok=True)


def _with_a_say(environment: Any) -> dict[str, Any]:
    """Of an environment as resolved.json has it, what the last bits depend on."""
    known = environment if isinstance(environment, dict) else {}
    packages = known.get("packages")
    here = {key: known[key] for key in ("device", "threads") if key in known}
    return {**(packages if isinstance(packages, dict) else {}), **here}


def _put_aside(folder: Path) -> Path:
    """Rename the folder, so that its name is free again."""
    wanted = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    tries = (wanted.with_name(f"{wanted.name}-{i}") for i in itertools.count(2))
    place = wanted if not wanted.exists() else next(x for x in tries if not x.exists())
    os.rename(folder, place)
    return place


def _taken(folder: Path) -> str:
    if not (folder / "recipe.yaml").exists():
        return f"out: {folder} exists and holds other files. Name another folder with out=..."
    status = Run(folder).status
    go_on = "" if status == "finished" else f" Go on with: {command()} train --resume {folder}."
    other = "For a new one: another folder (out=...), or --replace (the old run is kept aside)."
    return f"out: {folder} holds a run already ({status}).{go_on} {other}"
