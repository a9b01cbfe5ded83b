"""A small run that is killed at some moment, resumed, and compared with the run that was never killed."""

import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command import write_recipe
from support.processes import Child, ForkServer, KillAt, list_names
from support.recovery import assert_same_as_uninterrupted, assert_sound_checkpoint
from weitiao.core.run import Run

TEMPORARY = re.compile(r"^\.step-.*(tmp|trash|replaced)")  # in checkpoints/ only during a write or a removal
KILLED = 128 + signal.SIGKILL


@dataclass
class CrashTest:
    """A recipe, its uninterrupted run, and the disk operations of that run."""

    fork_server: ForkServer
    recipe: Path
    folder: Path
    seconds: float = 0.0
    operations: list[str] = field(default_factory=list)
    """`kind path`, one for each disk operation."""
    runs: int = 0

    @property
    def uninterrupted(self) -> Path:
        return self.folder / "uninterrupted"

    @classmethod
    def record(cls, fork_server: ForkServer, recipe: dict[str, Any], folder: Path) -> "CrashTest":
        """Run the recipe once to its end."""
        crash_test, log = cls(fork_server, write_recipe(folder, recipe), folder), folder / "operations.txt"
        out = crash_test.uninterrupted
        started = time.monotonic()
        fork_server.run("train", crash_test.recipe, f"out={out}", kill_at=KillAt(out, log=log))
        crash_test.seconds = time.monotonic() - started
        crash_test.operations = log.read_text().splitlines()
        return crash_test

    def new_folder(self) -> Path:
        """A folder for another run."""
        self.runs += 1
        return self.folder / f"run-{self.runs}"

    def start(self, out: Path, kill_at: KillAt | None = None) -> Child:
        """Start the run, or resume it where there is one, as a user would."""
        if (out / "recipe.yaml").exists():
            return self.fork_server.start("train", "--resume", out, kill_at=kill_at)
        return self.fork_server.start("train", self.recipe, f"out={out}", kill_at=kill_at)

    def kill_at_random(self, out: Path, rng: random.Random) -> bool:
        """Start, and kill at a moment that is likely to do harm; False if the run had ended before."""
        if Run(out).is_finished:
            return False
        trigger = rng.choice(("operation", "operation", "files", "files", "time"))
        if trigger == "operation":  # half of them in the checkpoints folder, half anywhere
            moments = [i for i, x in enumerate(self.operations) if rng.random() < 0.5 or " checkpoints/" in x]
            child = self.start(out, KillAt(out, at=rng.choice(moments)))
        else:
            child = self.start(out)
            if trigger == "files":
                _wait_for_temporary(child, out / "checkpoints", rng.randrange(1, 40))
                time.sleep(rng.random() * 0.004)
            else:
                time.sleep(rng.random() * self.seconds)
            child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, KILLED), f"exit code {code}:\n{child.output}"
        assert_sound_checkpoint(out)
        return code == KILLED

    def finish_and_compare(self, out: Path) -> None:
        """Resume to the end; the result must be that of the uninterrupted run."""
        if not (out / "recipe.yaml").exists() or not Run(out).is_finished or not (out / "report.html").exists():
            child = self.start(out)
            assert child.wait() == 0, child.output
        assert_same_as_uninterrupted(out, self.uninterrupted)

    def kill_at_each(self, moments: Sequence[int]) -> str:
        """One run for each moment: killed there, resumed, compared -> n/n."""
        for at in moments:
            out = self.new_folder()
            child = self.start(out, KillAt(out, at=at))
            assert child.wait() == KILLED, f"{self.operations[at]}: {child.output}"
            assert_sound_checkpoint(out)
            self.finish_and_compare(out)
        return f"{len(moments)}/{len(moments)}"


def _wait_for_temporary(child: Child, checkpoints: Path, count: int) -> None:
    """Until the folder has held `count` different temporary files, or the child has ended."""
    names: set[str] = set()
    for current in list_names(checkpoints):
        names |= {name for name in current if TEMPORARY.match(name)}
        if len(names) >= count or not child.process.is_alive():
            return
        time.sleep(0.0002)
