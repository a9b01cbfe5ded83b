"""Results kept from run to run: a killed benchmark continues, another machine or commit starts again from zero."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.shared.machine import ROOT

RESULTS = ROOT / "bench" / "results"


def commit() -> str:
    """The commit of this repository, with a + if src/ differs from it; "" outside a repository."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)

    head = git("rev-parse", "--short", "HEAD")
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+" if git("diff", "--quiet", "HEAD", "--", "src").returncode else "")


def load_cases(file: Path, setup: dict) -> dict:
    """The cases already measured with this setup; a file with another setup is renamed."""
    if not file.exists():
        return {}
    results = json.loads(file.read_text(encoding="utf-8"))
    if results["setup"] == setup:
        return results["cases"]
    older = file.with_suffix(".older.json")
    os.replace(file, older)
    print(f"{file.name} has another setup (machine, versions, code or settings); it is now {older.name}.", flush=True)
    return {}


@contextmanager
def work_folder(path: Path | None) -> Iterator[Path]:
    """The folder for logs, rows and adapters: the one requested, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        work = path.resolve() if path else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def save(file: Path, results: dict) -> None:
    """Writes atomically: a kill leaves the old file or the new one."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
