"""Signals while training: the first requests a stop, the second stops at once; each has its own exit code."""

import os
import signal

import pytest

from weitiao.core.errors import INTERRUPTED, TERMINATED, Interrupted
from weitiao.pipeline import train as pipeline
from weitiao.train.signals import catch_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_first_signal_requests_second_stops(number: int, code: int) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, catch_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.exit_code == code
        os.kill(os.getpid(), number)
    assert stopped.value.args == (code,)


def test_second_sigterm_exit_code(train_tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise KeyboardInterrupt(TERMINATED)

    monkeypatch.setattr(pipeline, "train_loop", train)
    with pytest.raises(Interrupted, match="with: weitiao train --resume") as stopped:
        train_tiny()
    assert stopped.value.exit_code == TERMINATED
