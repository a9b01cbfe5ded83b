"""The lock names its owner, and any process can tell how a Run stands."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weitiao.core.errors import RunError
from weitiao.core.events import End, Phase, Step
from weitiao.core.recipe import make_recipe
from weitiao.core.run import Run
from weitiao.core.run_status import Status, lock, now, read_owner

WRITER = """
import sys, time
from pathlib import Path
from weitiao.core.events import Phase, Step
from weitiao.core.run import Run
from weitiao.core.run_status import now
run = Run(Path(sys.argv[1]))
with run.locked():
    run.log(Phase("load", "start", now()))
    print("locked", flush=True)
    sys.stdin.readline()
    run.log(Step(5, 5, 2.0, 1.0, 1e-3, 64, 32, 0.1))
    print("stepped", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(make_recipe({"base": "somewhere", "data": "a.jsonl", "out": str(tmp_path / "run")}))


def test_running_then_killed_seen_from_another_process(run: Run) -> None:
    command = [sys.executable, "-c", WRITER, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "locked\n"
        status = run.status
        assert status.owner and (status.owner.pid, status.owner.host) == (child.pid, socket.gethostname())
        assert (status.state, status.phase, str(status)) == ("running", "load", "running (load)")
        with pytest.raises(RunError, match=rf"another process right now \(pid {child.pid} on .*, since 20"), run.locked():
            pass
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "stepped\n"
        assert str(run.status) == "running at step 5"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert run.status == Status("killed", 5) and "another process" not in str(run.status)
    with run.locked():
        assert run.status.state == "running"


def test_lock_is_empty_after_a_clean_end(run: Run) -> None:
    with run.locked():
        run.log(Step(1, 1, 2.0, 1.0, 1e-3, 64, 32, 0.1))
        run.log(End("interrupted", 1, 1, now()))
        assert run.status.state == "running" and (owner := read_owner(run.folder)) and owner.pid == os.getpid()
    assert (run.folder / ".lock").read_text() == "" and run.status == Status("interrupted", 1)


def test_a_finished_run_is_finished_while_its_report_is_written(run: Run) -> None:
    with run.locked():
        run.log(End("finished", 4, 4, now()))
        run.log(Phase("report", "start", now()))
        assert run.status == Status("finished", 4)


def test_looking_does_not_take_the_lock(run: Run) -> None:
    """Many processes may look while one starts."""
    loop = "import sys; from pathlib import Path; from weitiao.core.run_status import read_owner\n"
    loop += "while True: read_owner(Path(sys.argv[1]))"
    with lock(run.folder):
        text = (run.folder / ".lock").read_text()
    (run.folder / ".lock").write_text(text or '{"pid": 1, "host": "gone", "started": "2026-01-01T00:00:00+00:00"}')
    children = [subprocess.Popen([sys.executable, "-c", loop, str(run.folder)]) for _ in range(2)]
    try:
        time.sleep(0.5)
        for _ in range(100):
            with run.locked():
                pass
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("text", ["", "x", "[]", '{"pid": 1}'])
def test_an_unreadable_owner_is_nobody(run: Run, text: str) -> None:
    (run.folder / ".lock").write_text(text)
    assert read_owner(run.folder) is None and run.status == Status("no_step")
