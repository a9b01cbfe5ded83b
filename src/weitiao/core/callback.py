"""Callback: who listens to a Run while it trains: a progress bar, a tracker, a notebook."""

from typing import Any, Protocol

from weitiao.core.events import Event


class Callback(Protocol):
    """Is told every event as it is logged. It reads, and must not change the run."""

    def on_event(self, run: Any, event: Event) -> None:
        """Called in the training process, right after the event was written.

        Args:
            run: the core.run.Run.
        """
