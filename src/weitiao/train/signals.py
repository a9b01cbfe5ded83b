"""Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning) ask politely: the step is finished, everything is saved. A second one
stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from weitiao.core.errors import INTERRUPTED, TERMINATED


@dataclass
class Stop:
    """`asked` is the exit code to leave with, or 0."""

    asked: int = 0


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Inside, signals are noted instead of obeyed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _: Any) -> None:
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if stop.asked:
            raise KeyboardInterrupt(code)
        stop.asked = code

    asking = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in asking}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
