"""A sandbox for generated Python: its own process, which cannot reach anything, and ends.

    parent                                     child (sandbox_child.py)
    an empty folder, a secret, the program --> bounds itself (memory, CPU time, size of files, open files), then gives up:
    watches the clock and the folder           writing outside of the folder and reading more than Python   Landlock
    kills it when either is exceeded           network, processes, signals, other programs                  seccomp
    compares the secret                    <-- runs the program; the secret only if it came to its end

Without Landlock (Linux 5.13) and seccomp nothing is run: there is no weaker mode. A root user's child drops root's
powers first. An `os._exit(0)` in a program is no pass, as the secret is missing.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weitiao.core.errors import RecipeError

CHILD = Path(__file__).parent / "sandbox_child.py"
UNAVAILABLE = 77  # the child's exit status where the system has no such sandbox
WATCH_SECONDS = 0.02  # between two looks at a running program
FENCED = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """By the clock, and of CPU time."""
    memory_mb: int = 1024
    """Of addresses."""
    folder_mb: int = 16
    """Of its folder, and of a file."""
    files: int = 256
    """Entries in its folder."""
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    passed: bool
    """It ran to its end without an exception."""
    reason: str = ""
    """Why not: the last line of its traceback, "time", "folder", or how it ended."""


def code_of(answer: str) -> str:
    """The code of an answer: its first fenced block, or all of it.

    >>> code_of("Sure:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1'
    """
    fenced = FENCED.search(answer)
    return fenced[1] if fenced else answer


def run_programs(programs: Sequence[str], limits: Limits = Limits()) -> list[Outcome]:
    """Run programs, as many at a time as there are processors.

    Raises:
        RecipeError: this system has no such sandbox.
    """
    with ThreadPoolExecutor(max(1, min(len(programs), os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda program: run_program(program, limits), programs))


def run_program(program: str, limits: Limits = Limits()) -> Outcome:
    """Run one program.

    Raises:
        RecipeError: this system has no such sandbox.
    """
    if not sys.platform.startswith("linux"):
        raise _unavailable(sys.platform)
    folder = Path(tempfile.mkdtemp(prefix="weitiao-sandbox-"))
    secret, errors = secrets.token_hex(16), folder / "stderr"
    read_end, write_end = os.pipe()
    numbers = (limits.seconds, limits.memory_mb, limits.folder_mb, limits.open_files)
    try:
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-I", str(CHILD), str(folder), str(write_end), *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        os.close(write_end)
        write_end = -1
        reason = _watched(process, f"{secret}\n{program}".encode("utf-8", "surrogatepass"), folder, limits)
        os.set_blocking(read_end, False)
        try:
            passed = not reason and os.read(read_end, 64) == secret.encode()
        except BlockingIOError:
            passed = False
        if process.returncode == UNAVAILABLE:
            raise _unavailable(_last_line(errors))
        return Outcome(passed, "" if passed else reason or _last_line(errors) or f"exit status {process.returncode}")
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
        shutil.rmtree(folder, ignore_errors=True)


def _watched(process: subprocess.Popen[bytes], text: bytes, folder: Path, limits: Limits) -> str:
    """Wait for the end of a process, or bring it about; why it was ended, "" if it ended by itself."""
    deadline = time.monotonic() + limits.seconds
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and says why
            process.stdin.write(text)
            process.stdin.close()
        while process.poll() is None:
            if time.monotonic() > deadline:
                return "time"
            if _exceeds(folder, limits):
                return "folder"
            time.sleep(WATCH_SECONDS)
        return ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _exceeds(folder: Path, limits: Limits) -> bool:
    """Whether a folder has too many entries or bytes."""
    entries, size = 0, 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as inside:
                for x in inside:
                    entries += 1
                    size += x.stat(follow_symlinks=False).st_blocks * 512
                    if x.is_dir(follow_symlinks=False):
                        pending.append(Path(x.path))
                    if entries > limits.files or size > limits.folder_mb * 2**20:
                        return True
        except OSError:
            continue  # it was removed meanwhile
    return False


def _last_line(errors: Path) -> str:
    """The last line that a program wrote, at most 200 characters."""
    try:
        with errors.open("rb") as file:
            file.seek(max(0, errors.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:  # the program removed it
        return ""
    return lines[-1][:200] if lines else ""


def _unavailable(reason: str) -> RecipeError:
    return RecipeError(
        "evaluate.metrics: code_pass runs generated code, and only in a sandbox; this system has none ({reason}). It needs "
        "Linux 5.13 or later with Landlock and seccomp, on x86-64 or ARM64",
        reason=reason,
    )
