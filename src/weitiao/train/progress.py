"""Progress: a training run in one terminal line: step, loss with its curve, tokens a second, time left."""

import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from weitiao.core.events import CheckpointFailed, Event, Rollback, Skip, Step, Validation
from weitiao.core.history import describe
from weitiao.core.messages import Message
from weitiao.core.reporter import is_live
from weitiao.core.run import Run

BARS = "▁▂▃▄▅▆▇█"
WIDE = 110  # columns of a terminal with room for a long bar and curve
RECENT = 20  # steps that the throughput is averaged over
LINES = 5  # printed for a whole run where there is no terminal


def sparkline(values: list[float], width: int = 24) -> str:
    """Values as a line of bars.

    >>> sparkline([3.0, 2.0, 1.0])
    '█▄▁'
    """
    if len(values) > width:
        size = len(values) / width
        values = [
            sum(v) / len(v)
            for i in range(width)
            if (v := values[int(i * size) : max(int((i + 1) * size), int(i * size) + 1)])
        ]
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = (high - low) or 1.0
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] for v in values)


class Progress:
    """A callback: redraws its line in a terminal, elsewhere prints a line for each fifth of the run."""

    def __init__(self, console: Console, steps: int, first_step: int = 0) -> None:
        """
        Args:
            steps: how many are planned.
            first_step: where a resumed run goes on.
        """
        self.console, self.steps, self.step, self.first_step = console, steps, first_step, first_step
        self.losses: list[float] = []
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # tokens, seconds
        self.validation: Message | None = None
        self.started = time.perf_counter()
        self.live = Live("", console=console, refresh_per_second=4) if is_live(console) else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def on_event(self, run: Run, event: Event) -> None:
        match event:
            case Step():
                self.step = event.step
                self.losses.append(event.loss)
                self.recent.append((event.tokens, event.seconds))
            case Validation(loss=float(loss)):
                self.validation = Message("validation {loss:.3f}", loss=loss)
            case CheckpointFailed() | Rollback():
                self.console.print(Text(str(describe(event)), "bold red"))
            case Skip():
                text = Message("step {step} skipped: {reason}", step=event.step, reason=event.reason)
                self.console.print(Text(str(text), "bold yellow"), soft_wrap=True)
            case _:
                return
        if self.live:
            line = self.draw()
            line.no_wrap, line.overflow = True, "ellipsis"
            self.live.update(line)
        elif isinstance(event, Step) and (self.step % max(1, self.steps // LINES) == 0 or self.step == self.steps):
            self.console.print(self.draw(), soft_wrap=True)

    def draw(self) -> Text:
        tokens, seconds = (sum(x) for x in zip(*self.recent)) if self.recent else (0, 0.0)
        done = self.step - self.first_step
        left = (time.perf_counter() - self.started) / done * (self.steps - self.step) if done else 0.0
        loss = f"{self.losses[-1]:.3f}" if self.losses else "-"
        bar, curve = (20, 24) if self.console.width >= WIDE else (8, 10)
        parts = [Message("step {step}/{steps}", step=self.step, steps=self.steps)]
        parts.append(Message("loss {loss} {curve}", loss=loss, curve=sparkline(self.losses, curve)))
        parts += [self.validation] if self.validation else []
        parts += [Message("{rate:,.0f} tokens/s", rate=tokens / seconds)] if seconds else []
        parts.append(Message("{time} left", time=_clock(left)))
        full = int(bar * self.step / max(self.steps, 1))
        return Text("━" * full, "green") + Text("━" * (bar - full), "dim") + Text("  " + "  ".join(map(str, parts)))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
