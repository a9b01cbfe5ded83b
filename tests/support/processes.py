"""`weitiao ...` in a process of its own, quick to start, that can end itself at a chosen touch of the disk.

The processes are forked from a server that has imported torch and transformers already: a command costs its own work,
and is killed as a whole process all the same.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

LONGEST = 120  # seconds until a process is called hung


@dataclass(frozen=True)
class KillAt:
    """Counts what a process does to the files under `folder`; before number `at` it kills itself.

    Counted are opening for writing, writing tensors, fsync, making, renaming and removing. "torn" is the moment at
    which half of a file has been written.
    """

    folder: Path
    at: int | None = None
    """None: only count."""
    record: Path | None = None
    """Takes a line `kind path` for each touch."""
    only: str = ""
    """Counts only what begins so, under the folder."""


class Burning:
    """A Fuse at work in this process."""

    def __init__(self, fuse: KillAt) -> None:
        self.fuse, self.count, self.root = fuse, 0, f"{fuse.folder}/"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.record = os.open(fuse.record, flags, 0o644) if fuse.record else None

    def begin(self) -> None:
        import safetensors.torch

        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def counted_fsync(handle: int) -> None:
            path = _path_of(handle)
            self.touch("fsync", path)
            if os.path.isfile(path):
                self.touch("torn", path)
            fsync(handle)

        def counted_serialize(tensors: Any, file: Any, **more: Any) -> None:
            self.touch("write", str(file))
            serialize(tensors, file, **more)
            self.touch("torn", str(file))

        os.fsync, safetensors.torch.serialize_file = counted_fsync, counted_serialize
        sys.addaudithook(self.hear)

    def hear(self, event: str, facts: tuple) -> None:
        if event == "open" and isinstance(facts[0], (str, bytes)) and isinstance(facts[2], int):
            if facts[2] & (os.O_WRONLY | os.O_RDWR):
                self.touch("open", os.fsdecode(facts[0]))
        elif event in ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "shutil.rmtree"):
            folder = facts[-1] if isinstance(facts[-1], int) and facts[-1] >= 0 else None
            path = os.fsdecode(facts[1] if event == "os.rename" else facts[0])
            self.touch(event.rpartition(".")[2], path if folder is None else f"{_path_of(folder)}/{path}")

    def touch(self, kind: str, path: str) -> None:
        """Count one; it is the last if it is number `at`."""
        if not path.startswith(self.root + self.fuse.only):
            return
        if self.count == self.fuse.at:
            if kind == "torn":
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.record is not None:
            os.write(self.record, f"{kind} {path.removeprefix(self.root)}\n".encode())


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def _settle(home: Path, said: Path) -> None:
    """This process's own cache, thread and place to print."""
    os.environ["WEITIAO_HOME"], os.environ["OMP_NUM_THREADS"], os.environ["COLUMNS"] = str(home), "1", "300"
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    import torch

    torch.set_num_threads(1)


def run_and_exit(target: Callable[..., Any], *facts: Any) -> None:
    """target(*facts) in a process that was forked a moment ago; it never comes back."""
    code = 1
    try:
        target(*facts)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(words: list[str], home: Path, said: Path, fuse: KillAt | None) -> None:
    _settle(home, said)
    from weitiao.cli.app import app

    sys.argv = ["weitiao", *words]
    if fuse:
        Burning(fuse).begin()
    app.main()


def _anything(work: Callable[..., Any], home: Path, said: Path, facts: tuple) -> None:
    _settle(home, said)
    work(*facts)


@dataclass
class Child:
    """A process that was started."""

    process: Any
    said: Path

    def wait(self, longest: float = LONGEST) -> int:
        """Its exit code as a shell reports it: 128 + the signal that ended it."""
        self.process.join(longest)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {longest} s:\n{self.words}")
        code = self.process.exitcode
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """A signal; nothing if it has ended."""
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    @property
    def words(self) -> str:
        """All that it printed."""
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


class ForkServer:
    """Where children come from. `home` is their cache, `folder` takes what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.count = folder, folder / "home", 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["support.preload"])
        tests, before = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, before)))  # where the server finds it
        forkserver.ensure_running()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before

    def start(self, *words: str | Path, fuse: KillAt | None = None) -> Child:
        """`weitiao WORDS`."""
        return self._start(run_command, [str(word) for word in words], fuse)

    def run(self, *words: str | Path, fuse: KillAt | None = None, expect: int = 0) -> str:
        """`weitiao WORDS` to its end -> what it printed."""
        child = self.start(*words, fuse=fuse)
        code = child.wait()
        assert code == expect, f"exit code {code}, not {expect}:\n{child.words}"
        return child.words

    def work(self, work: Callable[..., Any], *facts: Any) -> Child:
        """work(*facts) in a child."""
        return self._start(_anything, work, facts)

    def _start(self, target: Callable[..., Any], first: Any, last: Any) -> Child:
        self.count += 1
        said = self.folder / f"said-{self.count}.txt"
        process: Any = self.context.Process(target=target, args=(first, self.home, said, last))
        process.start()
        return Child(process, said)


def list_names(folder: Path, longest: float = LONGEST) -> Iterator[set[str]]:
    """What lies in a folder, as often as it can be looked at; empty while there is none."""
    end = time.monotonic() + longest
    while time.monotonic() < end:
        try:
            yield set(os.listdir(folder))
        except FileNotFoundError:
            yield set()
