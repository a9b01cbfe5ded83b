"""What must hold after every crash: a sound checkpoint at every instant, and in the end the uninterrupted run's result."""

import hashlib
import os
from pathlib import Path

from support.runs import assert_same_run, run_contents
from weitiao.core.events import Checkpoint
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint


def assert_sound_checkpoint(folder: Path) -> None:
    """After the first commit there is always one that verifies, under its own name or its name during replacement."""
    checkpoints = folder / "checkpoints"
    paths = [*checkpoints.glob("step-*"), *checkpoints.glob(".step-*.replaced")]
    if paths or any(Run(folder).events(Checkpoint)):
        assert any(not checkpoint.find_damage(x) for x in paths), f"no sound one: {sorted(os.listdir(checkpoints))}"
    for path in checkpoints.glob("step-*"):  # whatever has a checkpoint's name was committed as a whole
        assert not checkpoint.find_damage(path), f"{path.name}: {checkpoint.find_damage(path)}"


def assert_same_as_uninterrupted(folder: Path, uninterrupted: Path) -> None:
    """Weights, moments, random numbers, journal, scores and adapter are bit-exact, and no temporary file is left."""
    assert Run(folder).is_finished
    assert_same_run(run_contents(Run(folder)), run_contents(Run(uninterrupted)))
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "preflight.json"):
        assert _hash(folder / name) == _hash(uninterrupted / name), name
    a, b = _files(folder), _files(uninterrupted)
    assert a == b, f"files that only one has: {sorted(a ^ b)}"


def _files(folder: Path) -> set[str]:
    """All files, also behind links to folders."""
    return {os.path.relpath(f"{at}/{name}", folder) for at, _, names in os.walk(folder, followlinks=True) for name in names}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "missing"
