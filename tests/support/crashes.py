"""A small run that accidents happen to: started, killed somewhere, resumed, compared with the one that ran through."""

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

HIDDEN = re.compile(r"^\.step-.*(tmp|trash|replaced)")  # what lies in checkpoints/ only while it is written or removed
KILLED = 128 + signal.SIGKILL


@dataclass
class CrashTest:
    """A recipe, its uninterrupted run, and what that run did to the disk."""

    fork_server: ForkServer
    recipe: Path
    folder: Path
    seconds: float = 0.0
    touches: list[str] = field(default_factory=list)
    """`kind path`, one for each touch of the disk."""
    runs: int = 0

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    @classmethod
    def brew(cls, fork_server: ForkServer, plain: dict[str, Any], folder: Path) -> "CrashTest":
        """Run it once without accidents."""
        crash_test, record = cls(fork_server, write_recipe(folder, plain), folder), folder / "touches.txt"
        started = time.monotonic()
        fork_server.run("train", crash_test.recipe, f"out={crash_test.whole}", fuse=KillAt(crash_test.whole, record=record))
        crash_test.seconds = time.monotonic() - started
        crash_test.touches = record.read_text().splitlines()
        return crash_test

    def place(self) -> Path:
        """A folder for another run."""
        self.runs += 1
        return self.folder / f"run-{self.runs}"

    def start(self, out: Path, fuse: KillAt | None = None) -> Child:
        """Begin the run, or go on with it, as a user would: --resume wherever there is a Run."""
        if (out / "recipe.yaml").exists():
            return self.fork_server.start("train", "--resume", out, fuse=fuse)
        return self.fork_server.start("train", self.recipe, f"out={out}", fuse=fuse)

    def kill_somewhere(self, out: Path, dice: random.Random) -> bool:
        """Start, and kill at a moment that is likely to hurt; False if the run had ended before."""
        if Run(out).status == "finished":
            return False
        how = dice.choice(("touch", "touch", "look", "look", "time"))
        if how == "touch":  # half of them in the states folder, half anywhere
            places = [i for i, x in enumerate(self.touches) if dice.random() < 0.5 or " checkpoints/" in x]
            child = self.start(out, KillAt(out, at=dice.choice(places)))
        else:
            child = self.start(out)
            if how == "look":
                _wait_for_hidden(child, out / "checkpoints", dice.randrange(1, 40))
                time.sleep(dice.random() * 0.004)
            else:
                time.sleep(dice.random() * self.seconds)
            child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, KILLED), f"exit code {code}:\n{child.words}"
        assert_sound_checkpoint(out)
        return code == KILLED

    def finish(self, out: Path) -> None:
        """Go on to the end and compare."""
        if not (out / "recipe.yaml").exists() or Run(out).status != "finished" or not (out / "report.html").exists():
            child = self.start(out)
            assert child.wait() == 0, child.words
        assert_same_as_uninterrupted(out, self.whole)


def _wait_for_hidden(child: Child, states: Path, wanted: int) -> None:
    """Until so many different half-made things were seen in the folder, or the child has ended."""
    seen: set[str] = set()
    for names in list_names(states):
        seen |= {name for name in names if HIDDEN.match(name)}
        if len(seen) >= wanted or not child.process.is_alive():
            return
        time.sleep(0.0002)


def kill_at_each(crash_test: CrashTest, moments: Sequence[int]) -> str:
    """One run for each moment: killed there, resumed, compared -> n/n."""
    for at in moments:
        out = crash_test.place()
        child = crash_test.start(out, KillAt(out, at=at))
        assert child.wait() == KILLED, f"{crash_test.touches[at]}: {child.words}"
        assert_sound_checkpoint(out)
        crash_test.finish(out)
    return f"{len(moments)}/{len(moments)}"
