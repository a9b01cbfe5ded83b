"""What must be so after every accident: a sound state at every instant, and in the end the run without the accident."""

import hashlib
import os
from pathlib import Path

from support.runs import assert_same_run, run_contents
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint


def assert_sound_checkpoint(folder: Path) -> None:
    """Once a state was committed there is one that verifies, under its own name or its name while it is replaced."""
    states = folder / "checkpoints"
    there = [*states.glob("step-*"), *states.glob(".step-*.replaced")]
    if there or any(Run(folder).events("saved")):
        sound = [place for place in there if not checkpoint.broken(place)]
        assert sound, f"no sound state: {sorted(x.name for x in states.iterdir())}"
    for place in states.glob("step-*"):  # what bears a state's name was committed as a whole
        assert not checkpoint.broken(place), f"{place.name}: {checkpoint.broken(place)}"


def assert_same_as_uninterrupted(folder: Path, whole: Path) -> None:
    """Weights, moments, random numbers, journal, scores, adapter: to the bit. Nothing half-written is left."""
    assert Run(folder).status == "finished"
    assert_same_run(run_contents(Run(folder)), run_contents(Run(whole)))
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "preflight.json"):
        assert _hash(folder / name) == _hash(whole / name), name
    a, b = _files(folder), _files(whole)
    assert a == b, f"files that only one has: {sorted(a ^ b)}"


def _files(folder: Path) -> set[str]:
    """All files, also behind links to folders."""
    return {os.path.relpath(f"{at}/{name}", folder) for at, _, names in os.walk(folder, followlinks=True) for name in names}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "not there"
