"""Train a Run, or measure a model, in a process of its own: with its own peak memory, and its own errors."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import ERROR_FILE, RecipeError, RunError
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.run import Run
from weitiao.multirun.progress import progress_of


@dataclass(frozen=True)
class Outcome:
    """How a `weitiao` process ended."""

    exit_code: int
    output: str
    error: Message
    error_type: str
    """The name of the exception class; "" if there was no error that a user can fix."""


def train_in_subprocess(recipe: Recipe, file: Path) -> Message | None:
    """Train, or resume an interrupted run; a finished run is not trained again.

    Args:
        file: where the recipe is written.

    Returns:
        None, or why the recipe cannot be trained.

    Raises:
        RunError: it failed for another reason, or the folder holds a run of another recipe.
    """
    folder = Path(recipe.out)
    progress = progress_of(folder)
    if progress != "new" and Run(folder).recipe.fingerprint != recipe.fingerprint:
        template = "{folder} was trained with another recipe, so it cannot be compared. Name another folder with out=..."
        raise RunError(template, folder=folder)
    if progress == "finished":
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, recipe.to_yaml())
    outcome = _weitiao("train", "--quiet", *(["--resume", str(folder)] if progress == "resumable" else [str(file)]))
    if outcome.error_type == RecipeError.__name__:
        return outcome.error
    if outcome.exit_code:
        raise RunError("{folder} failed: {error}", folder=folder.name, error=outcome.error)
    return None


def measure_in_subprocess(target: str, data: str) -> dict[str, Any]:
    """A model's scores on a file, as `weitiao evaluate --json` prints them.

    Raises:
        RunError: it cannot be measured.
    """
    outcome = _weitiao("evaluate", target, "--data", data, "--json")
    if outcome.exit_code:
        raise RunError("cannot evaluate {target} on {data}: {error}", target=target, data=data, error=outcome.error)
    return json.loads(outcome.output)


def _weitiao(*arguments: str) -> Outcome:
    """Run a command. Its error comes back as a record, not as printed text."""
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error.json"
        child = subprocess.Popen(
            [sys.executable, "-m", "weitiao", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, ERROR_FILE: str(error_file)},
        )
        try:
            output, printed = child.communicate()
        except KeyboardInterrupt:
            child.wait()  # it got the same Ctrl-C, and saves
            raise
        record = json.loads(error_file.read_text(encoding="utf-8")) if error_file.exists() else {}
    error = Message.from_json(record.get("message", " ".join(printed.split())[-500:]))
    return Outcome(child.returncode, output, error, record.get("type", ""))
