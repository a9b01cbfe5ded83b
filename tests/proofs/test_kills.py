"""SIGKILL at any moment, and SIGTERM at any moment: the run goes on and ends as if nothing had happened, to the bit."""

import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proofs.alike import assert_a_sound_state, assert_as_if_nothing_had_happened
from proofs.child import Child, Fuse, Nursery, names_in
from proofs.conftest import Figure
from stations.command import write_recipe
from weitiao.core.run import Run

HIDDEN = re.compile(r"^\.step-.*(tmp|trash|replaced)")  # what lies in states/ only while it is written or removed
DEADLINE = 10  # seconds from SIGTERM to the end of the process
KILLED, TERMINATED = 128 + signal.SIGKILL, 143


@dataclass
class Storm:
    """A recipe, its uninterrupted run, and what that run did to the disk."""

    nursery: Nursery
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
    def brew(cls, nursery: Nursery, plain: dict[str, Any], folder: Path) -> "Storm":
        """Run it once without accidents."""
        storm, record = cls(nursery, write_recipe(folder, plain), folder), folder / "touches.txt"
        started = time.monotonic()
        nursery.run("train", storm.recipe, f"out={storm.whole}", fuse=Fuse(storm.whole, record=record))
        storm.seconds = time.monotonic() - started
        storm.touches = record.read_text().splitlines()
        return storm

    def place(self) -> Path:
        """A folder for another run."""
        self.runs += 1
        return self.folder / f"run-{self.runs}"

    def start(self, out: Path, fuse: Fuse | None = None) -> Child:
        """Begin the run, or go on with it, as a user would: --resume wherever there is a Run."""
        if (out / "recipe.yaml").exists():
            return self.nursery.start("train", "--resume", out, fuse=fuse)
        return self.nursery.start("train", self.recipe, f"out={out}", fuse=fuse)

    def kill_somewhere(self, out: Path, dice: random.Random) -> bool:
        """Start, and kill at a moment that is likely to hurt; False if the run had ended before."""
        if Run(out).status == "finished":
            return False
        how = dice.choice(("touch", "touch", "look", "look", "time"))
        if how == "touch":  # half of them in the states folder, half anywhere
            places = [i for i, x in enumerate(self.touches) if dice.random() < 0.5 or " states/" in x]
            child = self.start(out, Fuse(out, at=dice.choice(places)))
        else:
            child = self.start(out)
            if how == "look":
                _wait_for_hidden(child, out / "states", dice.randrange(1, 40))
                time.sleep(dice.random() * 0.004)
            else:
                time.sleep(dice.random() * self.seconds)
            child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, KILLED), f"exit code {code}:\n{child.words}"
        assert_a_sound_state(out)
        return code == KILLED

    def finish(self, out: Path) -> None:
        """Go on to the end and compare."""
        if not (out / "recipe.yaml").exists() or Run(out).status != "finished" or not (out / "report.html").exists():
            child = self.start(out)
            assert child.wait() == 0, child.words
        assert_as_if_nothing_had_happened(out, self.whole)


def _wait_for_hidden(child: Child, states: Path, wanted: int) -> None:
    """Until so many different half-made things were seen in the folder, or the child has ended."""
    seen: set[str] = set()
    for names in names_in(states):
        seen |= {name for name in names if HIDDEN.match(name)}
        if len(seen) >= wanted or not child.process.is_alive():
            return
        time.sleep(0.0002)


@pytest.fixture(scope="module")
def storm(nursery: Nursery, storm_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Storm:
    return Storm.brew(nursery, storm_recipe, tmp_path_factory.mktemp("storm"))


def test_killed_at_any_moment(storm: Storm, dice: random.Random, full: bool, figure: Figure) -> None:
    """Kills that hit saving, pruning and renaming more often than chance would; one run in four is killed twice."""
    wanted, killed, runs = 300 if full else 6, 0, 0
    while killed < wanted:
        out, runs = storm.place(), runs + 1
        killed += storm.kill_somewhere(out, dice)
        if dice.random() < 0.25:
            killed += storm.kill_somewhere(out, dice)
        storm.finish(out)
    figure("killed at any moment", "every run resumes and ends bit-equal", f"{runs}/{runs} runs, {killed} kills", killed)


def kill_at_each(storm: Storm, moments: Sequence[int]) -> str:
    """One run for each moment: killed there, resumed, compared -> n/n."""
    for at in moments:
        out = storm.place()
        child = storm.start(out, Fuse(out, at=at))
        assert child.wait() == KILLED, f"{storm.touches[at]}: {child.words}"
        assert_a_sound_state(out)
        storm.finish(out)
    return f"{len(moments)}/{len(moments)}"


def a_few(moments: Sequence[int], count: int) -> Sequence[int]:
    """So many of them, evenly spread."""
    return [moments[i * len(moments) // count] for i in range(count)]


def test_killed_at_every_touch_of_the_disk_in_one_save(storm: Storm, full: bool, figure: Figure) -> None:
    """Step 3 is saved and step 1 removed: killed before, after and halfway through each thing that is done."""
    third = [i for i, x in enumerate(storm.touches) if re.search(r" states/\S*step-0*3\b", x)]
    later = [i for i, x in enumerate(storm.touches) if re.search(r" states/\S*step-0*4\b", x)]
    moments = range(third[0], later[0] + 1)
    kinds = {storm.touches[i].partition(" ")[0] for i in moments}
    assert {"open", "write", "fsync", "rename", "rmtree", "torn"} <= kinds and len(moments) > 30
    chosen = moments if full else a_few(moments, 6)
    figure("killed at every touch of the disk", "every moment of one save", kill_at_each(storm, chosen), len(chosen))


def test_killed_before_there_is_a_state_and_after_the_last(storm: Storm, full: bool, figure: Figure) -> None:
    """Every touch of the disk before the first state is committed, and every one after the last step's."""
    renamed = [i for i, x in enumerate(storm.touches) if re.fullmatch(r"rename states/step-\d+", x)]
    outer = [*range(renamed[0] + 3), *range(renamed[-1], len(storm.touches))]
    chosen = outer if full else [0, 3, renamed[0] + 1, outer[-12], outer[-3]]
    asked = "every moment before the first state and after the last"
    figure("killed before the first state or after the last", asked, kill_at_each(storm, chosen), len(chosen))


def test_terminated_at_any_moment(storm: Storm, dice: random.Random, full: bool, figure: Figure) -> None:
    """SIGTERM: exit code 143 in time, and the run goes on to the bit; one in four gets a second one at once."""
    wanted, stopped, slowest = 100 if full else 3, 0, 0.0
    while stopped < wanted:
        out = storm.place()
        child = storm.start(out)
        time.sleep(dice.random() * storm.seconds)
        sent = time.monotonic()
        child.send(signal.SIGTERM)
        if dice.random() < 0.25:
            time.sleep(dice.random() * 0.02)
            child.send(signal.SIGTERM)
        code = child.wait(DEADLINE)
        slowest = max(slowest, time.monotonic() - sent)
        assert code in (0, TERMINATED), f"exit code {code}:\n{child.words}"
        stopped += code == TERMINATED
        assert_a_sound_state(out)
        storm.finish(out)
    said = f"{stopped}/{stopped} left with 143 and resumed; the slowest took {slowest:.1f} s"
    figure("SIGTERM at any moment", f"143 within {DEADLINE} s, resumes bit-equal", said, stopped)


def test_killed_between_a_state_and_its_line_in_the_journal(storm: Storm, full: bool) -> None:
    """What was learnt is not learnt again: the state is there, whatever the journal says."""
    out = storm.place()
    first = next(i for i, x in enumerate(storm.touches) if re.fullmatch(r"rename states/step-\d+", x))
    child = storm.start(out, Fuse(out, at=next(i for i in range(first, first + 9) if "journal" in storm.touches[i])))
    assert child.wait() == KILLED and not list(Run(out).journal("saved"))
    (state,) = (out / "states").glob("step-*")
    (state / "MANIFEST.json").write_text("{}")
    again = storm.start(out)
    assert again.wait() == 2 and "holds no sound state to go on from" in again.words


def test_killed_after_an_early_stop(nursery: Nursery, storm_recipe: dict[str, Any], full: bool, tmp_path: Path) -> None:
    """It is not stopped early twice."""
    plain = {**storm_recipe, "train": {**storm_recipe["train"], "learning_rate": 3.0, "patience": 1, "evaluate_every": 2}}
    storm = Storm.brew(nursery, plain, tmp_path)
    assert list(Run(storm.whole).journal("early_stop"))
    kill_at_each(storm, [next(i for i, x in enumerate(storm.touches) if x.endswith(" adapter"))])
