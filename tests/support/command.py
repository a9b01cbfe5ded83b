"""The command line, run inside the test process."""

import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner


def weitiao(*args: str | Path) -> tuple[int, str]:
    """`weitiao ARGS` -> (exit code, output). A traceback fails the test.

    The terminal is wide, so that sentences are not broken into lines.
    """
    from weitiao.cli.app import app

    result = CliRunner().invoke(app, [str(x) for x in args], env={"COLUMNS": "300", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write_recipe(folder: Path, plain: dict[str, Any]) -> Path:
    """A recipe as a file."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def wait_for(file: Path, child: subprocess.Popen, seconds: float = 300.0) -> None:
    """Wait until a file exists.

    Raises:
        AssertionError: the child has ended, or the time is up.
    """
    until = time.monotonic() + seconds
    while not file.exists():
        assert child.poll() is None and time.monotonic() < until, f"{file.name} did not come"
        time.sleep(0.05)
