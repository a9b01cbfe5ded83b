"""The command line, run inside the test: what a user types, and what he reads."""

import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner


def weitiao(*words: str | Path) -> tuple[int, str]:
    """`weitiao WORDS` -> (exit code, all that was printed). A traceback is a failure of the test.

    Line breaks that the terminal's width made are taken out, so that sentences can be looked for.
    """
    from weitiao.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "300", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write_recipe(folder: Path, plain: dict[str, Any]) -> Path:
    """A recipe as the file that a user writes."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def wait_for(file: Path, child: subprocess.Popen, seconds: float = 300.0) -> None:
    """Until the file is there.

    Raises:
        AssertionError: the child has ended, or the seconds have.
    """
    until = time.monotonic() + seconds
    while not file.exists():
        assert child.poll() is None and time.monotonic() < until, f"{file.name} did not come"
        time.sleep(0.05)
