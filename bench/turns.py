"""Two processes that work in turns: while one takes its steps, the other waits at its standard input.

    the bench       go ->            go ->            end ->
    one side           [steps] -> {}
    the other side                      [steps] -> {}

One line of JSON answers each `go`. What libraries print goes to standard error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ERROR_SHOWN = 3000  # characters of a failed side's log


class Player:
    """The side's own end of it."""

    def __init__(self) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.out, flush=True)

    def my_turn(self) -> bool:
        """Waits; False: the bench has no more turns to give."""
        return sys.stdin.readline().strip() == "go"


class Side:
    """The bench's end: a process that takes turns."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with open(log, "w", encoding="utf-8") as said:
            piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "text": True}
            self.child = subprocess.Popen(command, env={**os.environ, **environment}, **piped)

    def hear(self) -> dict:
        """What it says next.

        Raises:
            SystemExit: it is gone; the end of its log is shown.
        """
        line = self.child.stdout.readline()
        if not line:
            self.child.wait()
            raise SystemExit(f"{self.name} ended too early:\n{self.log.read_text(encoding='utf-8')[-ERROR_SHOWN:]}")
        return json.loads(line)

    def turn(self) -> dict:
        """Lets it take one turn."""
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        return self.hear()

    def end(self) -> dict:
        """Its last words (what memory it needed); it is gone afterwards."""
        self.child.stdin.close()
        last = self.hear()
        self.child.wait()
        return last

    def stop(self) -> None:
        """Whatever happened, it does not stay behind."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
