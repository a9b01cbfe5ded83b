"""Saver: states are written beside the training. A snapshot in memory at the step's end, then a thread writes it.

    step 40 |--snapshot--| step 41 | step 42 | ...
                         '---- write, hash, fsync, rename, remove older ones ----'     at most one at a time

Where memory is short, or training ends, no snapshot is made: training waits for the writing instead.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from weitiao.core import events
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.checkpoint import Snapshot
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan

ROOM = 2.0  # times a snapshot's size that must be free for it to be made


@dataclass
class Writing:
    """One state on its way to the disk."""

    thread: threading.Thread
    facts: dict[str, Any]
    error: list[Exception] = field(default_factory=list)


@dataclass
class Saver:
    """Writes a run's states; only the first machine does."""

    run: Run
    state: State
    plan: Plan
    distributed: Distributed
    writing: Writing | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Whatever happened, what is being written is finished; only a second Ctrl-C does not wait."""
        if kind is not KeyboardInterrupt:
            self.finish()

    @property
    def folder(self) -> Path:
        return self.run.folder / "checkpoints"

    def begin(self) -> None:
        """The base model is the first healthy state. A run that goes on removes what a kill gave it no time to remove."""
        if self.plan.guarded and self.state.position == 0:
            self.save()
        elif self.distributed.is_main:
            checkpoint.prune(self.folder, self.plan.settings.keep_checkpoints, self.pinned())

    def save(self, going_on: bool = True) -> None:
        """The state as it is now, soon on the disk. A full disk is said loudly and the run goes on, older states intact.

        Args:
            going_on: training goes on meanwhile; else no snapshot is made.
        """
        if not self.distributed.is_main:
            return
        self.finish()
        started, beside = time.perf_counter(), going_on and self._has_room()
        snapshot = checkpoint.snapshot(self.state, self.plan.identity, copy=beside)
        here = {"step": self.state.step, "data_step": self.state.position}
        facts = {**here, "blocked_seconds": round(time.perf_counter() - started, 4)}
        write = threading.Thread(target=self._write, args=(snapshot, self.pinned(), started), daemon=True)
        self.writing = Writing(write, facts)
        write.start()
        if not beside:
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written, and note it."""
        if self.writing is not None:
            self.writing.thread.join()
            self.notice()

    def notice(self) -> None:
        """If the writing has ended, write that into the journal. What is no fault of the disk is raised here."""
        done = self.writing
        if done is None or done.thread.is_alive():
            return
        self.writing = None
        if done.error:
            if not isinstance(done.error[0], OSError):
                raise done.error[0]
            self.run.log(events.CheckpointFailed(**done.facts, reason=Message(str(done.error[0]))))
        else:
            self.run.log(events.Checkpoint(**done.facts))

    def pinned(self) -> set[int]:
        """Steps whose states are never removed: the best, and the newest healthy one."""
        return {self.state.best_step, *(checkpoint.step_of(place) for place in self.healthy()[:1])}

    def healthy(self) -> list[Path]:
        """States that the guard has proven, the newest first."""
        return [x for x in checkpoint.newest_first(self.folder) if checkpoint.step_of(x) <= self.state.guard.healthy]

    def _write(self, snapshot: Snapshot, pinned: set[int], started: float) -> None:
        """In the thread: nothing here looks at the live state."""
        writing = self.writing
        assert writing is not None
        try:
            place = checkpoint.commit(self.folder, snapshot, self.plan.settings.keep_checkpoints, pinned)
            writing.facts.update(name=place.name, seconds=round(time.perf_counter() - started, 3))
        except Exception as error:  # a thread's exception would be lost, and the state be noted as saved
            writing.error.append(error)

    def _has_room(self) -> bool:
        return psutil.virtual_memory().available > ROOM * checkpoint.size(self.state.tensors())
