"""States on disk: safetensors and JSON only, whole or not at all.

snapshot  the state's tensors and numbers, copied, so that training can go on while they are written
write    checkpoints/.step-40.tmp-<pid>/  every file, fsync, then MANIFEST.json with their sha256, fsync
commit   rename to checkpoints/step-000040, fsync the folder; only then are older ones removed
read     newest first; every file's sha256 is checked; a broken one is put aside with a word and the next is taken
"""

import errno
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from weitiao.core.errors import RunError
from weitiao.core.files import file_sha256
from weitiao.train.checkpoints.state import State

MANIFEST = "MANIFEST.json"
SPARE, SPARE_BYTES = 1.2, 2**20  # of a state's size, and besides, that must be free before it is written
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


@dataclass(frozen=True)
class Snapshot:
    """A state at one step's end."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By file."""
    numbers: dict[str, Any]


def snapshot(state: State, identity: dict[str, str], copy: bool = True) -> Snapshot:
    """The state as it is now.

    Args:
        identity: what a resumed run must have in common with this one (data, tokenizer, template ...).
        copy: into memory of its own, so that training can go on; else only until the next step.
    """
    tensors = state.tensors()
    if copy:
        tensors = {kind: {n: x.to("cpu", copy=True) for n, x in group.items()} for kind, group in tensors.items()}
    return Snapshot(state.step, tensors, {**state.numbers(), "identity": identity})


def size(tensors: dict[str, dict[str, Tensor]]) -> int:
    """Bytes of a state's tensors."""
    return sum(x.nbytes for group in tensors.values() for x in group.values())


def commit(folder: Path, made: Snapshot, keep: int, pinned: Collection[int] = ()) -> Path:
    """Write one state and remove older ones but the newest `keep`.

    Args:
        pinned: steps whose states stay, however old.

    Raises:
        OSError: the disk is full or broken; nothing half-written is left, older states are as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, temp = folder / f"step-{made.step:06d}", folder / f".step-{made.step}.tmp-{os.getpid()}"
    shutil.rmtree(temp, ignore_errors=True)
    _make_room(folder, made, pinned)
    try:
        temp.mkdir()
        for name, tensors in made.tensors.items():
            write_tensors(temp / f"{name}.safetensors", tensors)
        _write(temp / "state.json", made.numbers)
        _write(temp / MANIFEST, {name: file_sha256(temp / name) for name in FILES})
        sync(temp)
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    replaced = place.with_name(f".{place.name}.replaced")
    if place.exists():  # a run that went back, or was stopped at a skipped step, is at the same step again
        os.rename(place, replaced)
    os.rename(temp, place)
    sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    prune(folder, keep, pinned)
    return place


def _make_room(folder: Path, made: Snapshot, pinned: Collection[int]) -> None:
    """Before anything is written: where the disk is nearly full, older states go first, but for the newest and the pinned.

    Raises:
        OSError: there is still not enough.
    """
    needed = int(SPARE * size(made.tensors)) + SPARE_BYTES
    for old in reversed(newest_first(folder)[1:]):
        if shutil.disk_usage(folder).free >= needed:
            return
        if step_of(old) not in pinned:
            _remove(old)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"a state needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free", str(folder))


def prune(folder: Path, keep: int, pinned: Collection[int] = ()) -> None:
    """Remove all states but the newest `keep` and those of pinned steps."""
    for old in newest_first(folder)[keep:]:
        if step_of(old) not in pinned:
            _remove(old)


def tidy(folder: Path) -> None:
    """What a killed process left: a half-replaced state gets its name back; half-written and half-removed ones go."""
    for replaced in folder.glob(".step-*.replaced"):
        place = folder / replaced.name[1:].removesuffix(".replaced")
        if place.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, place)
    for left in (*folder.glob(".step-*.tmp-*"), *folder.glob(".step-*.trash-*")):
        shutil.rmtree(left, ignore_errors=True)


def _remove(place: Path) -> None:
    """Rename first: what is half removed must not look like a state."""
    if place.exists():
        trash = place.with_name(f".{place.name}.trash-{os.getpid()}")
        os.rename(place, trash)
        shutil.rmtree(trash, ignore_errors=True)


def forget_after(place: Path) -> None:
    """Remove the states that are newer than this one, the newest first."""
    for newer in newest_first(place.parent):
        if step_of(newer) > step_of(place):
            _remove(newer)


def step_of(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """The states; names that only look like one (step-4.bak) are somebody else's."""
    states = [place for place in folder.glob("step-*") if place.name.removeprefix("step-").isdigit()]
    return sorted(states, key=step_of, reverse=True)


def load_newest(folder: Path, state: State, identity: dict[str, str], say: Any) -> Path:
    """Load the newest sound state.

    Args:
        say: called with a sentence for each broken state that was put aside.

    Raises:
        RunError: there is no sound state, or it belongs to other data, template, tokenizer or batch shape.
    """
    tidy(folder)
    for place in newest_first(folder):
        error = broken(place)
        if error:
            aside = folder / f"broken-{place.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(place, aside)
            say(f"{place.name} is damaged ({error}); it was put aside as {aside.name}, and the next older one is tried.")
            continue
        numbers = _numbers(place)
        changed = [
            f"{k} (was {numbers['identity'].get(k)}, is {v})"
            for k, v in identity.items()
            if numbers["identity"].get(k) != v
        ]
        if changed:
            raise RunError(f"this run cannot go on, for something it depends on has changed: {'; '.join(changed)}.")
        try:
            load(place, state)
        except KeyError as lacking:
            why = f"{lacking.args[0]}; it may have been written by another version of weitiao"
            raise RunError(f"{place} does not fit this run: {why}.") from None
        return place
    raise RunError(
        f"{folder} holds no sound state to go on from. Train anew with --overwrite (the old run is kept aside), "
        "or name another folder with out=..."
    )


def load(place: Path, state: State) -> None:
    """Make `state` what was saved at `place`."""
    tensors = {name: load_file(place / f"{name}.safetensors") for name in ("weights", "optimizer", "random")}
    state.load(tensors, _numbers(place))


def broken(place: Path) -> str:
    """Why a state cannot be trusted, or ''."""
    try:
        hashes = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        every = (file.name for file in place.iterdir())
        there = {name for name in every if not name.startswith(".")}  # a desktop's .DS_Store harms nobody
        if missing := {*FILES} - there or {*FILES} - {*hashes}:
            return f"{min(missing)} is missing"
        if odd := there - {*FILES, MANIFEST}:
            return f"{min(odd)} does not belong to it"
        if wrong := [name for name in FILES if file_sha256(place / name) != hashes[name]]:
            return f"{wrong[0]} is not what was written"
        _look_into(place)
    except FileNotFoundError:
        return "no manifest"
    except (ValueError, TypeError):
        return "unreadable manifest"
    except (OSError, SafetensorError) as error:
        return f"unreadable: {error}"
    return ""


def _look_into(place: Path) -> None:
    """Hashes that fit do not make a pickle or an empty file readable: somebody may have written both."""
    for name in FILES:
        if name.endswith(".json"):
            _numbers(place)
        else:
            with safe_open(place / name, "pt"):
                pass


def _numbers(place: Path) -> dict[str, Any]:
    """What is in state.json.

    Raises:
        OSError: not what `save` wrote.
    """
    try:
        numbers = json.loads((place / "state.json").read_text(encoding="utf-8"))
    except ValueError:
        numbers = None
    if not isinstance(numbers, dict) or "identity" not in numbers:
        raise OSError("state.json is not a state's")
    return numbers


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, on the disk when this returns.

    Raises:
        OSError: it could not be written.
    """
    plain = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
    try:
        save_file(plain, file)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    sync(file)


def _write(file: Path, value: Any) -> None:
    with open(file, "w", encoding="utf-8") as opened:
        json.dump(value, opened)
        opened.flush()
        os.fsync(opened.fileno())


def sync(path: Path) -> None:
    """Until the disk says that it has it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
