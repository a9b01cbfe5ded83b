"""The run as it goes, in one terminal line: step, loss with its curve, tokens a second, time left."""

import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 24) -> str:
    """Values as a line of little bars.

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
    """Listens to the journal; draws in a terminal, or prints a plain line now and then."""

    def __init__(self, console: Console, steps: int, begun: int = 0) -> None:
        self.console, self.steps, self.step, self.begun = console, steps, begun, begun
        self.losses: list[float] = []
        self.recent: deque[tuple[float, float]] = deque(maxlen=20)  # tokens, seconds
        self.validation = ""
        self.started = time.perf_counter()
        self.live = Live("", console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, line: dict[str, Any]) -> None:
        if line["event"] == "step":
            self.step = line["step"]
            self.losses.append(line["loss"])
            self.recent.append((line["tokens"], line["seconds"]))
        elif line["event"] == "validation" and line["loss"] is not None:
            self.validation = f"  validation {line['loss']:.3f} (step {line['step']})"
        elif line["event"] == "save_failed":
            self.console.print(f"[bold red]{line['words']}[/]")
        else:
            return
        if self.live:
            self.live.update(self.draw())
        elif line["event"] == "step" and (self.step % max(1, self.steps // 10) == 0 or self.step == self.steps):
            self.console.print(self.draw(), soft_wrap=True)

    def draw(self) -> Text:
        tokens, seconds = (sum(x) for x in zip(*self.recent)) if self.recent else (0.0, 0.0)
        done = self.step - self.begun
        left = (time.perf_counter() - self.started) / done * (self.steps - self.step) if done else 0.0
        loss = f"{self.losses[-1]:.3f}" if self.losses else "-"
        rate = f"{tokens / seconds:,.0f} tokens/s" if seconds else ""
        full = int(20 * self.step / max(self.steps, 1))
        bar = Text("━" * full, "green") + Text("━" * (20 - full), "dim")
        words = f"  step {self.step}/{self.steps}  loss {loss} {sparkline(self.losses)}{self.validation}"
        return bar + Text(f"{words}  {rate}  {_time(left)} left")


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
