"""Results that are kept from run to run: a killed bench goes on, and another machine or commit begins anew."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """Of this repository, with a + where src/ differs from it; "" where there is none."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True, text=True)

    said = git("rev-parse", "--short", "HEAD")
    if said.returncode:
        return ""
    return said.stdout.strip() + ("+" if git("diff", "--quiet", "HEAD", "--", "src").returncode else "")


def known_cases(file: Path, here: dict) -> dict:
    """What was measured already, with this setup; results of another one are put aside."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["setup"] == here:
        return found["cases"]
    aside = file.with_suffix(".older.json")
    os.replace(file, aside)
    print(f"{file.name} has another setup (machine, versions, code or settings); it is now {aside.name}.", flush=True)
    return {}


@contextmanager
def work_folder(asked: Path | None) -> Iterator[Path]:
    """Where a bench writes on its way: the folder asked for, or one that is gone in the end."""
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.resolve() if asked else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def save(file: Path, results: dict) -> None:
    """In one go: a kill leaves the old file or the new one."""
    fresh = file.with_suffix(".tmp")
    fresh.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, file)
