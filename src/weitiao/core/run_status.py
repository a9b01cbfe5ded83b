"""Status of a Run, told from its folder by any process: running, interrupted, stopped, failed, killed, finished.

.lock is held (flock) by the process that writes the Run, and holds its pid, host and start time as JSON. The system
releases it when the process ends, however it ends, so a held lock means a living process. The last event in
events.jsonl says how an ended process ended; if it says nothing, the process was killed.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal

from weitiao.core import event_log
from weitiao.core.errors import RunError
from weitiao.core.messages import Message

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

State = Literal["no_step", "running", "interrupted", "stopped", "failed", "killed", "finished"]
LOCK, EVENTS = ".lock", "events.jsonl"
TRIES, WAIT = 10, 0.05  # s; somebody who only looks holds the lock for microseconds


@dataclass(frozen=True)
class Owner:
    """The process that writes a Run."""

    pid: int
    host: str
    started: str
    """When it took the lock; UTC, ISO 8601."""


@dataclass(frozen=True)
class Status:
    """Where a Run is. `str()` says it in the reader's language."""

    state: State
    step: int = 0
    """The last optimizer step taken."""
    phase: str = ""
    """What a running process is doing: read, load, train, evaluate after ..."""
    owner: Owner | None = None
    """Of a running Run."""

    @property
    def message(self) -> Message:
        if self.state == "running" and not self.step:
            return Message("running ({phase})", phase=self.phase) if self.phase else Message("running")
        match self.state:
            case "no_step":
                return Message("no step taken")
            case "running":
                return Message("running at step {step}", step=self.step)
            case "interrupted":
                return Message("interrupted at step {step}", step=self.step)
            case "stopped":
                return Message("stopped by the guard at step {step}", step=self.step)
            case "failed":
                return Message("failed at step {step}", step=self.step)
            case "killed":
                return Message("killed at step {step}", step=self.step)
            case "finished":
                return Message("finished")

    def __str__(self) -> str:
        return str(self.message)


def now() -> str:
    """The time as records hold it: UTC, ISO 8601, in seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_status(folder: Path, ended: bool = False) -> Status:
    """The status of the Run in a folder; only the last events are read.

    Args:
        ended: training has ended, though this process still holds the lock.
    """
    outcome, step, phase = "", 0, None
    for record in event_log.read_backwards(folder / EVENTS):
        kind = record.get("event")
        if kind == "phase" and phase is None:
            phase = str(record.get("name", "")) if record.get("status") == "start" else ""
        if kind in ("step", "rollback", "resume", "end"):
            step = _whole(record.get("step"))
            outcome = str(record.get("outcome", "")) if kind == "end" else ""
            break
    if outcome == "finished":
        return Status("finished", step)
    if not ended and (owner := read_owner(folder)):
        return Status("running", step, phase or "", owner)
    if outcome == "stopped":
        return Status("stopped", step)
    if not step:
        return Status("no_step")
    return Status({"interrupted": "interrupted", "failed": "failed"}.get(outcome, "killed"), step)  # pyright: ignore[reportArgumentType]


def read_owner(folder: Path) -> Owner | None:
    """The living process that writes this Run; None: nobody does."""
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            owner = _owner(file.read())
            if owner is None or (fcntl is None and not _is_alive(owner)):
                return None
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None  # closing the file releases it
            return owner
    except BlockingIOError:
        return owner  # pyright: ignore[reportPossiblyUnboundVariable]
    except OSError:
        return None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Inside, no other process may take this lock, and the file names this one.

    Raises:
        RunError: another process holds it.
    """
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        _take(file, folder)
        owner = Owner(os.getpid(), socket.gethostname(), now())
        file.truncate(0)
        file.write(json.dumps(asdict(owner)))
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # a folder that was removed meanwhile, a full disk
                file.truncate(0)


def _take(file: IO[str], folder: Path) -> None:
    for attempt in range(TRIES):
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif (owner := read_owner(folder)) and owner.pid != os.getpid():
                raise BlockingIOError
            return
        except BlockingIOError:
            if attempt < TRIES - 1:
                time.sleep(WAIT)
        except OSError:  # a network drive without locks
            return
    owner = read_owner(folder)
    if owner is None:
        raise RunError("{folder} is being written by another process right now. Wait for it, or stop it.", folder=folder)
    raise RunError(
        "{folder} is being written by another process right now (pid {pid} on {host}, since {started}). Wait for it, or "
        "stop it.",
        folder=folder,
        **asdict(owner),
    )


def _owner(text: str) -> Owner | None:
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _is_alive(owner: Owner) -> bool:
    """Without file locks (Windows): whether that process is there, and is not a younger one of the same number."""
    import psutil

    if owner.host != socket.gethostname():
        return True
    try:
        born = psutil.Process(owner.pid).create_time()
    except psutil.Error:
        return False
    return born <= datetime.fromisoformat(owner.started).timestamp() + 1


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
