"""Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning) request a stop: the current step is finished and everything is saved. A
second signal stops at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from weitiao.core.errors import INTERRUPTED, TERMINATED


@dataclass
class Stop:
    """Whether a stop was requested."""

    exit_code: int = 0
    """The exit code to leave with; 0: no stop was requested."""

    def __bool__(self) -> bool:
        return bool(self.exit_code)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Inside, a first signal is recorded in the Stop instead of ending the process."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield stop
        return

    def request_stop(number: int, _: FrameType | None) -> None:
        exit_code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if stop:
            raise KeyboardInterrupt(exit_code)
        stop.exit_code = exit_code

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    previous = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
