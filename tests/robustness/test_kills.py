"""SIGKILL or SIGTERM at any moment: the resumed run ends bit-exactly as the uninterrupted one."""

import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.crashes import KILLED, CrashTest
from support.processes import ForkServer, KillAt
from support.proofs import Figure
from support.recovery import assert_sound_checkpoint
from weitiao.core.events import Checkpoint, EarlyStop
from weitiao.core.run import Run

DEADLINE = 10  # seconds from SIGTERM to the end of the process
TERMINATED = 143


def test_sigkill_at_random_moment(crash_test: CrashTest, rng: random.Random, full: bool, record_figure: Figure) -> None:
    """Kills hit saving, pruning and renaming more often than by chance; half of the runs are killed again."""
    target, killed, runs = 300 if full else 4, 0, 0
    while killed < target:
        out, runs = crash_test.new_folder(), runs + 1
        killed += crash_test.kill_at_random(out, rng)
        while rng.random() < 0.5:
            killed += crash_test.kill_at_random(out, rng)
        crash_test.finish_and_compare(out)
    record_figure(
        "killed at any moment", "every run resumes and ends bit-identical", f"{runs}/{runs} runs, {killed} kills", killed
    )


def evenly_spaced(moments: Sequence[int], count: int) -> Sequence[int]:
    return [moments[i * len(moments) // count] for i in range(count)]


def test_sigkill_at_every_disk_operation_of_a_save(crash_test: CrashTest, full: bool, record_figure: Figure) -> None:
    """Step 3 is saved and step 1 removed: killed before, after and halfway through each operation."""
    third = [i for i, x in enumerate(crash_test.operations) if re.search(r" checkpoints/\S*step-0*3\b", x)]
    later = [i for i, x in enumerate(crash_test.operations) if re.search(r" checkpoints/\S*step-0*4\b", x)]
    moments = range(third[0], later[0] + 1)
    kinds = {crash_test.operations[i].partition(" ")[0] for i in moments}
    assert {"open", "write", "fsync", "rename", "rmtree", "torn"} <= kinds and len(moments) > 30
    chosen = moments if full else evenly_spaced(moments, 3)
    record_figure(
        "killed at every touch of the disk", "every moment of one save", crash_test.kill_at_each(chosen), len(chosen)
    )


def test_sigkill_before_first_and_after_last_checkpoint(crash_test: CrashTest, full: bool, record_figure: Figure) -> None:
    """Every disk operation before the first checkpoint is committed, and every one after the last."""
    renamed = [i for i, x in enumerate(crash_test.operations) if re.fullmatch(r"rename checkpoints/step-\d+", x)]
    outer = [*range(renamed[0] + 3), *range(renamed[-1], len(crash_test.operations))]
    chosen = outer if full else [3, outer[-12], outer[-3]]
    claim = "every moment before the first checkpoint and after the last"
    record_figure(
        "killed before the first checkpoint or after the last", claim, crash_test.kill_at_each(chosen), len(chosen)
    )


def test_sigterm_at_random_moment(crash_test: CrashTest, rng: random.Random, full: bool, record_figure: Figure) -> None:
    """Exit code 143 in time, and a bit-exact resume; one in four gets a second signal right away."""
    target, stopped, slowest = 100 if full else 2, 0, 0.0
    while stopped < target:
        out = crash_test.new_folder()
        child = crash_test.start(out)
        time.sleep(rng.random() * crash_test.seconds)
        sent = time.monotonic()
        child.send(signal.SIGTERM)
        if rng.random() < 0.25:
            time.sleep(rng.random() * 0.02)
            child.send(signal.SIGTERM)
        code = child.wait(DEADLINE)
        slowest = max(slowest, time.monotonic() - sent)
        assert code in (0, TERMINATED), f"exit code {code}:\n{child.output}"
        stopped += code == TERMINATED
        assert_sound_checkpoint(out)
        crash_test.finish_and_compare(out)
    measured = f"{stopped}/{stopped} left with 143 and resumed; the slowest took {slowest:.1f} s"
    record_figure("SIGTERM at any moment", f"143 within {DEADLINE} s, resumes bit-identical", measured, stopped)


def test_sigkill_between_checkpoint_and_event(crash_test: CrashTest, full: bool) -> None:
    """No step is trained twice: the checkpoint counts, whatever the journal says."""
    out = crash_test.new_folder()
    first = next(i for i, x in enumerate(crash_test.operations) if re.fullmatch(r"rename checkpoints/step-\d+", x))
    child = crash_test.start(
        out, KillAt(out, at=next(i for i in range(first, first + 9) if "events.jsonl" in crash_test.operations[i]))
    )
    assert child.wait() == KILLED and not list(Run(out).events(Checkpoint))
    (state,) = (out / "checkpoints").glob("step-*")
    (state / "MANIFEST.json").write_text("{}")
    again = crash_test.start(out)
    assert again.wait() == 2 and "no undamaged checkpoint to resume from" in again.output


def test_sigkill_after_early_stopping(
    fork_server: ForkServer, crash_recipe: dict[str, Any], full: bool, tmp_path: Path
) -> None:
    """It does not stop early twice. At such a learning rate no loss moves, so none is ever better."""
    slow = {"learning_rate": 1e-12, "patience": 1, "evaluate_every": 2}
    plain = {**crash_recipe, "train": {**crash_recipe["train"], **slow}}
    crash_test = CrashTest.record(fork_server, plain, tmp_path)
    assert list(Run(crash_test.uninterrupted).events(EarlyStop))
    crash_test.kill_at_each([next(i for i, x in enumerate(crash_test.operations) if x.endswith(" adapter"))])


def test_sigkill_while_pruning_checkpoints(crash_test: CrashTest) -> None:
    """The next start removes the rest, though nothing is left to train."""
    last = max(i for i, x in enumerate(crash_test.operations) if re.fullmatch(r"rename checkpoints/step-\d+", x))
    crash_test.kill_at_each(
        [next(i for i in range(last, len(crash_test.operations)) if "trash" in crash_test.operations[i])]
    )
