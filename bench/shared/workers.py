"""Two worker processes that run in alternation: while one takes its steps, the other waits at its standard input.

    the benchmark   go ->            go ->            (closed) ->
    one worker         [steps] -> {}
    the other                           [steps] -> {}

One line of JSON answers each `go`. What libraries print goes to standard error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

LOG_TAIL = 3000  # characters of a failed worker's log


class Channel(Protocol):
    """A worker's connection to the benchmark."""

    def send(self, **facts: Any) -> None: ...
    def wait_for_go(self) -> bool: ...


class StdioChannel:
    """The connection over standard input and output."""

    def __init__(self) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr

    def send(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.out, flush=True)

    def wait_for_go(self) -> bool:
        """Blocks; False when the benchmark has closed the connection."""
        return sys.stdin.readline().strip() == "go"


class Worker:
    """The benchmark's handle on a worker process."""

    def __init__(self, name: str, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with open(log, "w", encoding="utf-8") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            self.child = subprocess.Popen(command, env={**os.environ, **variables}, **pipes)

    def receive(self) -> dict:
        """The worker's next message.

        Raises:
            SystemExit: the worker has ended; the tail of its log is shown.
        """
        line = self.child.stdout.readline()
        if not line:
            self.child.wait()
            raise SystemExit(f"{self.name} ended too early:\n{self.log.read_text(encoding='utf-8')[-LOG_TAIL:]}")
        return json.loads(line)

    def run_round(self) -> dict:
        """Lets it take its steps of one round."""
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        return self.receive()

    def finish(self) -> dict:
        """Closes the connection and returns the worker's last message (its memory)."""
        self.child.stdin.close()
        last = self.receive()
        self.child.wait()
        return last

    def kill(self) -> None:
        """Ends the process if it is still running."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
