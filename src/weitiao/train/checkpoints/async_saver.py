"""Saver: writes checkpoints in the background. A snapshot in memory at the end of a step, then a thread writes it.

    step 40 |--snapshot--| step 41 | step 42 | ...
                         '---- write, hash, fsync, rename, remove older ones ----'     at most one at a time

If memory is short, or training ends, there is no snapshot: training waits until the checkpoint is written.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from weitiao.core import events
from weitiao.core.errors import message_of
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.checkpoint import Snapshot
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan

MEMORY_FACTOR = 2.0  # times the size of a snapshot: the free memory that a snapshot needs


@dataclass
class PendingCheckpoint:
    """A checkpoint that a thread is writing."""

    thread: threading.Thread
    fields: dict[str, Any]
    """Of the event that is logged when it ends."""
    error: list[Exception] = field(default_factory=list)


@dataclass
class Saver:
    """Writes a run's checkpoints; only the main process does."""

    run: Run
    state: State
    plan: Plan
    distributed: Distributed
    pending: PendingCheckpoint | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Wait for a pending checkpoint, whatever happened; only a second Ctrl-C does not wait."""
        if kind is not KeyboardInterrupt:
            self.wait()

    @property
    def folder(self) -> Path:
        return self.run.folder / "checkpoints"

    def start(self) -> None:
        """Before the first step: save it, because the base model is the first verified checkpoint to roll back to.

        A resumed run removes what a kill left no time to remove.
        """
        if self.plan.is_guarded and self.state.data_step == 0:
            self.save()
        elif self.distributed.is_main:
            checkpoint.prune(self.folder, self.plan.settings.keep_checkpoints, self.pinned_steps())

    def save(self, in_background: bool = True) -> None:
        """Save the current state. If the disk is full, an event says so, and training continues.

        Args:
            in_background: write in a thread while training continues, if there is memory for a snapshot.
        """
        if not self.distributed.is_main:
            return
        self.wait()
        started, in_background = time.perf_counter(), in_background and self._has_memory()
        snapshot = checkpoint.snapshot(self.state, self.plan.identity, copy=in_background)
        blocked_seconds = round(time.perf_counter() - started, 4)
        fields = {"step": self.state.step, "data_step": self.state.data_step, "blocked_seconds": blocked_seconds}
        thread = threading.Thread(target=self._write, args=(snapshot, self.pinned_steps(), started), daemon=True)
        self.pending = PendingCheckpoint(thread, fields)
        thread.start()
        if not in_background:
            self.wait()

    def wait(self) -> None:
        """Wait until the pending checkpoint is written, and log it."""
        if self.pending is not None:
            self.pending.thread.join()
            self.log_written()

    def log_written(self) -> None:
        """If the pending checkpoint has been written, log the event. An error that is not the disk's is raised here."""
        pending = self.pending
        if pending is None or pending.thread.is_alive():
            return
        self.pending = None
        if pending.error:
            if not isinstance(pending.error[0], OSError):
                raise pending.error[0]
            self.run.log(events.CheckpointFailed(**pending.fields, reason=message_of(pending.error[0])))
        else:
            self.run.log(events.Checkpoint(**pending.fields))

    def pinned_steps(self) -> set[int]:
        """Steps whose checkpoints are never removed: the best, and the newest verified one."""
        return {self.state.best_step, *(checkpoint.step_of(path) for path in self.verified()[:1])}

    def verified(self) -> list[Path]:
        """Checkpoints that the guard has verified, the newest first."""
        newest_step = self.state.guard.verified_step
        return [path for path in checkpoint.newest_first(self.folder) if checkpoint.step_of(path) <= newest_step]

    def _write(self, snapshot: Snapshot, pinned: set[int], started: float) -> None:
        """Runs in the thread, so it reads nothing that training changes."""
        pending = self.pending
        assert pending is not None
        try:
            path = checkpoint.commit(self.folder, snapshot, self.plan.settings.keep_checkpoints, pinned)
            pending.fields.update(name=path.name, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:  # an exception in a thread would be lost, and the checkpoint be logged as written
            pending.error.append(error)

    def _has_memory(self) -> bool:
        return psutil.virtual_memory().available > MEMORY_FACTOR * checkpoint.size_in_bytes(self.state.tensors())
