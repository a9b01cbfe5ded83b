"""A Run trained, or a model measured, in a process of its own: its memory is its own, and so is its fate."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from weitiao.core.errors import RunError
from weitiao.core.files import write_text
from weitiao.core.recipe import Recipe
from weitiao.core.run import Run


def train_apart(asked: Recipe, file: Path) -> str:
    """Train, or go on where it was interrupted; nothing is done for what is done already.

    Args:
        file: where the recipe is written.

    Returns:
        "", or the sentence with which the method refuses.

    Raises:
        RunError: it failed for another reason, or the folder holds a run of another recipe.
    """
    place = Path(asked.out)
    resume, done_before = any(place.glob("checkpoints/step-*")), (place / "report.html").exists()
    if (resume or done_before) and Run.open(place).recipe.fingerprint != asked.fingerprint:
        raise RunError(f"{place} was trained with another recipe: it cannot be compared. Name another folder with out=...")
    if done_before:
        return ""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, asked.to_yaml())
    code, _, said = _weitiao("train", "--quiet", *(["--resume", str(place)] if resume else [str(file)]))
    said = " ".join(said.split())
    if code == 2 and said.startswith("method"):
        return said.removeprefix("method: ")
    if code:
        raise RunError(f"{place.name} failed: {said[-500:]}")
    return ""


def measure_apart(target: str, data: str) -> dict[str, Any]:
    """A model's scores on a file, as `weitiao evaluate` finds them.

    Raises:
        RunError: it cannot be measured.
    """
    code, found, said = _weitiao("evaluate", target, "--data", data, "--json")
    if code:
        raise RunError(f"{target} could not be measured on {data}: {' '.join(said.split())[-500:]}")
    return json.loads(found)


def _weitiao(*words: str) -> tuple[int, str, str]:
    """The exit code, and what was said on either stream."""
    command = [sys.executable, "-m", "weitiao", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = child.communicate()
    except KeyboardInterrupt:
        child.wait()  # it heard the same Ctrl-C, and saves
        raise
    return child.returncode, out, error
