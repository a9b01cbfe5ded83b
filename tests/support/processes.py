"""`weitiao ...` in its own process, quick to start, that can kill itself at a chosen disk operation.

The processes are forked from a server that has imported torch and transformers already, so a command costs only its own
work, and is still killed as a whole process.
"""

import io
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

TIMEOUT = 120  # seconds until a process counts as hung


@dataclass(frozen=True)
class KillAt:
    """Counts the disk operations of a process under `folder`, and kills the process before operation number `at`.

    Counted: opening for writing, writing tensors, fsync, creating, renaming and removing. "torn" is the moment at which
    half of a file has been written.
    """

    folder: Path
    at: int | None = None
    """None: only count."""
    log: Path | None = None
    """Gets one line `kind path` for each operation."""
    prefix: str = ""
    """Counts only paths that start with this, relative to the folder."""


class DiskCounter:
    """A KillAt at work in this process."""

    def __init__(self, kill_at: KillAt) -> None:
        self.kill_at, self.count, self.root = kill_at, 0, f"{kill_at.folder}/"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.log = os.open(kill_at.log, flags, 0o644) if kill_at.log else None

    def install(self) -> None:
        import safetensors.torch

        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def counted_fsync(handle: int) -> None:
            path = _path_of(handle)
            self.add("fsync", path)
            if os.path.isfile(path):
                self.add("torn", path)
            fsync(handle)

        def counted_serialize(tensors: Any, file: Any, **options: Any) -> None:
            self.add("write", str(file))
            serialize(tensors, file, **options)
            self.add("torn", str(file))

        os.fsync, safetensors.torch.serialize_file = counted_fsync, counted_serialize
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int):
            if args[2] & (os.O_WRONLY | os.O_RDWR):
                self.add("open", os.fsdecode(args[0]))
        elif event in ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "shutil.rmtree"):
            folder = args[-1] if isinstance(args[-1], int) and args[-1] >= 0 else None
            path = os.fsdecode(args[1] if event == "os.rename" else args[0])
            self.add(event.rpartition(".")[2], path if folder is None else f"{_path_of(folder)}/{path}")

    def add(self, kind: str, path: str) -> None:
        """Count one operation; kill this process if it is number `at`."""
        if not path.startswith(self.root + self.kill_at.prefix):
            return
        if self.count == self.kill_at.at:
            if kind == "torn":
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.log is not None:
            os.write(self.log, f"{kind} {path.removeprefix(self.root)}\n".encode())


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


@dataclass(frozen=True)
class Setting:
    """Where a child runs: its cache folder, the file that it prints into, its variables, working folder and input."""

    home: Path
    output: Path
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stdin: str = ""


def _set_up(setting: Setting) -> None:
    """Apply a setting to this process, and compute on one thread."""
    os.environ.update({"WEITIAO_HOME": str(setting.home), "OMP_NUM_THREADS": "1", "COLUMNS": "300", **setting.env})
    handle = os.open(setting.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if setting.cwd:
        os.chdir(setting.cwd)
    if setting.stdin:
        sys.stdin = io.StringIO(setting.stdin)
    import torch

    torch.set_num_threads(1)


def run_and_exit(target: Callable[..., Any], *args: Any) -> None:
    """target(*args) in a process that has just been forked; exits instead of returning."""
    code = 1
    try:
        target(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(args: list[str], setting: Setting, kill_at: KillAt | None) -> None:
    _set_up(setting)
    from weitiao.cli.app import main

    sys.argv = ["weitiao", *args]
    if kill_at:
        DiskCounter(kill_at).install()
    main()


def _call(function: Callable[..., Any], setting: Setting, args: tuple) -> None:
    _set_up(setting)
    function(*args)


@dataclass
class Child:
    """A started process."""

    process: Any
    output_file: Path

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Its exit code as a shell reports it: 128 + the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.output}")
        code = self.process.exitcode
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.output_file.read_text(encoding="utf-8", errors="replace") if self.output_file.exists() else ""


class ForkServer:
    """Starts child processes. `home` is their cache folder, `folder` takes what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.count = folder, folder / "home", 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["support.preload"])
        tests, before = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, before)))  # where the server finds the module
        forkserver.ensure_running()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before

    def start(self, *args: str | Path, kill_at: KillAt | None = None, **setting: Any) -> Child:
        """`weitiao ARGS`; `setting`: env, cwd, stdin."""
        return self._start(run_command, [str(x) for x in args], kill_at, **setting)

    def run(self, *args: str | Path, kill_at: KillAt | None = None, exit_code: int = 0, **setting: Any) -> str:
        """`weitiao ARGS` to its end -> what it printed."""
        child = self.start(*args, kill_at=kill_at, **setting)
        code = child.wait()
        assert code == exit_code, f"exit code {code}, not {exit_code}:\n{child.output}"
        return child.output

    def call(self, function: Callable[..., Any], *args: Any) -> Child:
        """function(*args) in a child."""
        return self._start(_call, function, args)

    def _start(self, target: Callable[..., Any], first: Any, last: Any, **setting: Any) -> Child:
        self.count += 1
        output = self.folder / f"output-{self.count}.txt"
        process: Any = self.context.Process(target=target, args=(first, Setting(self.home, output, **setting), last))
        process.start()
        return Child(process, output)


def list_names(folder: Path, timeout: float = TIMEOUT) -> Iterator[set[str]]:
    """The names in a folder, again and again; empty while there is no folder."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            yield set(os.listdir(folder))
        except FileNotFoundError:
            yield set()


def two_processes(fork_server: ForkServer, recipe: Path, out: Path) -> None:
    """The same with the variables that torchrun sets, in processes that need not import torch first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    for child in [fork_server.start("train", recipe, f"out={out}", env=env) for env in ranks]:
        assert child.wait() == 0, child.output
