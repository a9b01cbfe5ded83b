"""Checkpoints on disk: safetensors and JSON only, complete or not there at all.

snapshot  the state's tensors and numbers, copied, so that training can continue while they are written
write     checkpoints/.step-40.tmp-<pid>/  every file, fsync, then MANIFEST.json with their sha256, fsync
commit    rename to checkpoints/step-000040, fsync the folder; only then are older ones removed
read      newest first; every file's sha256 is checked; a damaged one is moved aside with a warning, and the next is tried
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from weitiao.core.errors import InvalidValue, RunError, message_of
from weitiao.core.files import file_sha256
from weitiao.core.messages import Message, joined
from weitiao.train.checkpoints.state import State

MANIFEST = "MANIFEST.json"
SPACE_FACTOR, SPACE_BYTES = 1.2, 2**20  # free space to have before writing: times the size of the tensors, plus this
FILE = "file "  # of an identity's keys: a data file, with the hash of its bytes
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


@dataclass(frozen=True)
class Snapshot:
    """A state at the end of a step."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By file."""
    numbers: dict[str, Any]


def snapshot(state: State, identity: dict[str, str], copy: bool = True) -> Snapshot:
    """The current state.

    Args:
        identity: what a resumed run must have in common with this one (data, tokenizer, template ...).
        copy: copy the tensors, so that training can continue; otherwise the snapshot is valid until the next step.
    """
    tensors = state.tensors()
    if copy:
        tensors = {kind: {n: x.to("cpu", copy=True) for n, x in group.items()} for kind, group in tensors.items()}
    return Snapshot(state.step, tensors, {**state.numbers(), "identity": identity})


def size_in_bytes(tensors: dict[str, dict[str, Tensor]]) -> int:
    """The size of a state's tensors."""
    return sum(x.nbytes for group in tensors.values() for x in group.values())


def commit(folder: Path, snapshot: Snapshot, keep: int, pinned: Collection[int] = ()) -> Path:
    """Write a checkpoint and remove older ones except the newest `keep`; returns its folder.

    Args:
        pinned: steps whose checkpoints are never removed.

    Raises:
        OSError: the disk is full or broken; nothing half-written is left, older checkpoints are as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, temp = folder / f"step-{snapshot.step:06d}", folder / f".step-{snapshot.step}.tmp-{os.getpid()}"
    shutil.rmtree(temp, ignore_errors=True)
    _free_space(folder, snapshot, pinned)
    try:
        temp.mkdir()
        for name, tensors in snapshot.tensors.items():
            write_tensors(temp / f"{name}.safetensors", tensors)
        _write(temp / "state.json", snapshot.numbers)
        _write(temp / MANIFEST, {name: file_sha256(temp / name) for name in FILES})
        sync(temp)
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    replaced = path.with_name(f".{path.name}.replaced")
    if path.exists():  # after a rollback, or a stop at a skipped step, the run is at the same step again
        os.rename(path, replaced)
    os.rename(temp, path)
    sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    prune(folder, keep, pinned)
    return path


def _free_space(folder: Path, snapshot: Snapshot, pinned: Collection[int]) -> None:
    """If the disk is nearly full, remove older checkpoints before writing, except the newest and the pinned.

    Raises:
        OSError: there is still not enough space.
    """
    needed = int(SPACE_FACTOR * size_in_bytes(snapshot.tensors)) + SPACE_BYTES
    for old in reversed(newest_first(folder)[1:]):
        if shutil.disk_usage(folder).free >= needed:
            return
        if step_of(old) not in pinned:
            _remove(old)
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = Message(
            "a checkpoint needs {needed:,.1f} MB, {free:,.1f} MB are free", needed=needed / 1e6, free=free / 1e6
        )
        raise OSError(errno.ENOSPC, str(message), str(folder))


def prune(folder: Path, keep: int, pinned: Collection[int] = ()) -> None:
    """Remove all checkpoints except the newest `keep` and those of pinned steps."""
    for old in newest_first(folder)[keep:]:
        if step_of(old) not in pinned:
            _remove(old)


def clean_up(folder: Path) -> None:
    """Clean up after a killed process: a half-replaced checkpoint gets its name back; half-written ones are removed."""
    for replaced in folder.glob(".step-*.replaced"):
        path = folder / replaced.name[1:].removesuffix(".replaced")
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, path)
    for left in (*folder.glob(".step-*.tmp-*"), *folder.glob(".step-*.trash-*")):
        shutil.rmtree(left, ignore_errors=True)


def _remove(path: Path) -> None:
    """Rename first, so that a half-removed folder never looks like a checkpoint."""
    if path.exists():
        trash = path.with_name(f".{path.name}.trash-{os.getpid()}")
        os.rename(path, trash)
        shutil.rmtree(trash, ignore_errors=True)


def remove_newer(path: Path) -> None:
    """Remove the checkpoints that are newer than this one, the newest first."""
    for newer in newest_first(path.parent):
        if step_of(newer) > step_of(path):
            _remove(newer)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, without those with other names (step-4.bak)."""
    checkpoints = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(checkpoints, key=step_of, reverse=True)


def load_newest(folder: Path, state: State, identity: dict[str, str], warn: Callable[[Message], None]) -> Path:
    """Load the newest undamaged checkpoint into `state`; returns its folder.

    Args:
        warn: called once for each damaged checkpoint that was moved aside.

    Raises:
        RunError: there is no undamaged one, or it belongs to other data, template, tokenizer or batch shape.
    """
    clean_up(folder)
    for path in newest_first(folder):
        damage = find_damage(path)
        if damage:
            aside = folder / f"broken-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            warn(
                Message(
                    "{checkpoint} is damaged ({damage}); it was renamed {aside}, and the next older one is tried.",
                    checkpoint=path.name,
                    damage=damage,
                    aside=aside.name,
                )
            )
            continue
        way_on = Message(
            "train a new run from this one's weights, with a learning rate schedule of its own: init_from={folder} out=...",
            folder=folder.parent,
        )
        check_identity(_numbers(path)["identity"], identity, way_on)
        try:
            load(path, state)
        except (KeyError, InvalidValue) as error:
            raise RunError(
                "{checkpoint} does not fit this run: {reason}; it may have been written by another version of weitiao.",
                checkpoint=path,
                reason=message_of(error),
            ) from None
        return path
    raise RunError(
        "{folder} has no undamaged checkpoint to resume from. Train again with --overwrite (the old run is moved away), or "
        "name another folder with out=...",
        folder=folder,
    )


def check_identity(saved: dict[str, str], current: dict[str, str], way_on: Message) -> None:
    """Compare what a run depends on with what it depended on when the checkpoint was written.

    Args:
        way_on: what to do if it has changed for good.

    Raises:
        RunError: something has changed.
    """
    changed = {key: value for key, value in current.items() if saved.get(key) != value}
    files = [key.removeprefix(FILE) for key in changed if key.startswith(FILE)]
    changes = [
        Message("{key} (was {before}, is {now})", key=key, before=saved.get(key), now=value)
        for key, value in changed.items()
        if not key.startswith(FILE) and not (key == "data" and files)
    ]
    changes = [Message("the rows of {file}, or their order", file=file) for file in files] + changes
    if changes:
        raise RunError(
            "this run cannot be resumed, because something it depends on has changed: {changes}. Restore it; or {way_on}",
            changes=joined("; ", changes),
            way_on=way_on,
        )


def load(path: Path, state: State) -> None:
    """Make `state` the one that was saved at `path`."""
    tensors = {name: load_file(path / f"{name}.safetensors") for name in ("weights", "optimizer", "random")}
    state.load(tensors, _numbers(path))


def find_damage(path: Path) -> Message | None:
    """Why a checkpoint cannot be used; None: it is complete and as it was written."""
    try:
        hashes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        names = {file.name for file in path.iterdir() if not file.name.startswith(".")}  # .DS_Store and the like are fine
        if missing := {*FILES} - names or {*FILES} - {*hashes}:
            return Message("{file} is missing", file=min(missing))
        if unknown := names - {*FILES, MANIFEST}:
            return Message("{file} does not belong to it", file=min(unknown))
        if changed := [name for name in FILES if file_sha256(path / name) != hashes[name]]:
            return Message("{file} is not what was written", file=changed[0])
        _try_to_read(path)
    except FileNotFoundError:
        return Message("no manifest")
    except (ValueError, TypeError):
        return Message("unreadable manifest")
    except (OSError, SafetensorError) as error:
        return Message("unreadable: {error}", error=str(error))
    return None


def _try_to_read(path: Path) -> None:
    """Open every file: somebody may have replaced both a file and its hash by something unreadable."""
    for name in FILES:
        if name.endswith(".json"):
            _numbers(path)
        else:
            with safe_open(path / name, "pt"):
                pass


def _numbers(path: Path) -> dict[str, Any]:
    """The contents of state.json.

    Raises:
        OSError: it is not what `commit` wrote.
    """
    try:
        numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except ValueError:
        numbers = None
    if not isinstance(numbers, dict) or "identity" not in numbers:
        raise OSError(str(Message("state.json is not that of a checkpoint")))
    return numbers


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file; it is on the disk when this returns.

    Raises:
        OSError: it could not be written.
    """
    on_cpu = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
    try:
        save_file(on_cpu, file)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    sync(file)


def _write(file: Path, value: Any) -> None:
    with open(file, "w", encoding="utf-8") as opened:
        json.dump(value, opened)
        opened.flush()
        os.fsync(opened.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
