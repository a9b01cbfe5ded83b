"""A disk that is really full: a small tmpfs that the run fills, and that is enlarged afterwards."""

import ctypes
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.crashes import CrashTest
from support.processes import ForkServer, KillAt, Setting, run_and_exit, run_command
from support.proofs import Figure
from support.recovery import assert_same_as_uninterrupted, assert_sound_checkpoint
from weitiao.core.events import CheckpointFailed
from weitiao.core.recipe import read_recipe
from weitiao.core.run import Run

RUBBISH = re.compile(r"tmp|trash|replaced")
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
NO_MOUNT = 77


def _call(name: str, *facts: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*facts):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _small_disk(place: Path, size: int) -> None:
    """A tmpfs of `size` bytes that only this process sees; for a user without rights, in its own namespace."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)  # recursive, private: nobody else sees what is mounted
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size}".encode())


def _more_room(place: Path, size: int) -> None:
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", 32, f"size={size}".encode())  # remount


def _weitiao(*words: str | Path, kill_at: KillAt | None = None) -> tuple[int, str]:
    """`weitiao WORDS` in a fork of this process, which sees the small disk -> (exit code, all that it printed)."""
    said = Path(os.environ["WEITIAO_HOME"]) / f"said-{time.monotonic_ns()}.txt"
    said.parent.mkdir(exist_ok=True)
    process = os.fork()
    if process == 0:
        run_and_exit(run_command, [str(x) for x in words], Setting(Path(os.environ["WEITIAO_HOME"]), said), kill_at)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, said.read_text()


def live_on_a_small_disk(crash_test: CrashTest, out: Path, disk: Path, size: int, at: int | None, facts: Path) -> None:
    """Train until the disk is full and beyond; look; make room, go on, compare. Written into `facts`."""
    try:
        _small_disk(disk, size)
    except OSError as error:
        facts.write_text(json.dumps({"no_mount": str(error)}))
        os._exit(NO_MOUNT)
    if disk.name == "checkpoints":  # only they are on the small disk: the Run is there before its first step
        Run.create(read_recipe(crash_test.recipe, (f"out={out}",)))
        (out / "checkpoints").symlink_to(disk)
    code, said = start(crash_test, out, KillAt(out, at, prefix="events"))
    found = look(out, code, said)
    _more_room(disk, 1 << 26)
    if not Run(out).is_finished:
        code, said = start(crash_test, out)
        assert code == 0, said
        assert_same_as_uninterrupted(out, crash_test.uninterrupted)
    facts.write_text(json.dumps(found))


def start(crash_test: CrashTest, out: Path, kill_at: KillAt | None = None) -> tuple[int, str]:
    """Begin, or go on."""
    if (out / "recipe.yaml").exists():
        return _weitiao("train", "--resume", out, kill_at=kill_at)
    return _weitiao("train", crash_test.recipe, f"out={out}", kill_at=kill_at)


def look(out: Path, code: int, said: str) -> dict[str, Any]:
    """What a full disk left; every older state must verify."""
    assert_sound_checkpoint(out)
    rubbish = [
        x.name
        for x in (*out.glob("*"), *out.glob(".*"), *out.glob("checkpoints/*"), *out.glob("checkpoints/.*"))
        if RUBBISH.search(x.name)
    ]
    failed = [str(event.reason) for event in Run(out).events(CheckpointFailed)]
    return {"code": code, "said": said, "status": Run(out).status.state, "failed": failed, "rubbish": rubbish}


def on_a_small_disk(
    fork_server: ForkServer, crash_test: CrashTest, out: Path, disk: Path, size: int, at: int | None = None
) -> dict[str, Any]:
    disk.mkdir(parents=True)
    facts = crash_test.new_folder()
    child = fork_server.call(live_on_a_small_disk, crash_test, out, disk, size, at, facts)
    code = child.wait()
    if code == NO_MOUNT:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {json.loads(facts.read_text())['no_mount']}")
    assert code == 0, child.output
    return json.loads(facts.read_text())


@pytest.fixture(scope="module")
def state_size(crash_test: CrashTest) -> int:
    """Bytes that one state takes on a disk of 4 KiB blocks."""
    newest = max((crash_test.uninterrupted / "checkpoints").glob("step-*"))
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in newest.iterdir())


def test_checkpoint_disk_full(
    crash_test: CrashTest, fork_server: ForkServer, state_size: int, full: bool, record_figure: Figure
) -> None:
    """The run goes on to its end and says at each save that it failed; killed on the way, it resumes once there is room."""
    sizes = (0.5, 1.5, 2.2, 2.9, 3.5, 4.2) if full else (2.2,)
    cases = [(size, killed) for size in sizes for killed in (False, True)]
    for size, killed in cases if full else cases[1:]:
        out = crash_test.new_folder()
        disk = out.with_name(f"{out.name}-disk") / "checkpoints"
        at = crash_test.operations.count("open events.jsonl") * 6 // 10 if killed else None
        found = on_a_small_disk(fork_server, crash_test, out, disk, int(size * state_size), at)
        assert found["code"] == (-signal.SIGKILL if killed else 0), found["said"]
        assert found["failed"] and all(reason in found["said"] for reason in found["failed"])
        assert "older checkpoints are intact and training goes on" in found["said"]
        assert killed or not found["rubbish"]
    n = len(cases) if full else 1
    record_figure(
        "disk of the checkpoints is full",
        "continues with a warning; older checkpoints verify; resumes bit-identical",
        f"{n}/{n} sizes",
        n,
    )


def test_run_disk_full(
    crash_test: CrashTest, fork_server: ForkServer, state_size: int, full: bool, record_figure: Figure
) -> None:
    """Journal, result and states share it: the run goes on or stops with a sentence, and resumes once there is room."""
    sizes = (0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.1, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.3, 4.6) if full else (1.1,)
    ended = []
    for size in sizes:
        disk = crash_test.new_folder()
        found = on_a_small_disk(fork_server, crash_test, disk / "run", disk, int(size * state_size))
        ended.append(found["code"])
        assert "Traceback" not in found["said"] and not found["rubbish"], (size, found)
        if found["code"] == 0:
            assert found["status"] == "finished" and found["failed"], (size, found)
        else:
            assert found["code"] == 1 and "Free some disk space" in found["said"] and "--resume" in found["said"], (
                size,
                found,
            )
    said = f"{len(sizes)}/{len(sizes)} sizes; {ended.count(1)} stopped with a message, {ended.count(0)} continued"
    record_figure("disk of the run is full", "stops with a message or continues; resumes bit-identical", said, len(sizes))
