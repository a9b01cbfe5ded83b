"""Desk: where a command prints, and the bar it shows for long work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from weitiao.core.finding import Decision, Finding
from weitiao.core.run import Run


@dataclass
class Reporter:
    """The terminal. Bars are drawn in a terminal only; a quiet desk prints nothing."""

    console: Console = field(default_factory=lambda: Console(highlight=False))

    def track(self, items: Sequence[Any], words: str) -> Iterator[Any]:
        """The items, one by one, with a bar and the time left."""
        items = list(items)
        if not self.console.is_terminal:
            self.console.print(f"{words} ({len(items)} to go)", style="dim", soft_wrap=True)
        if not self.console.is_terminal or self.console.quiet or len(items) < 2:
            yield from items
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield from bar.track(items, description=words)

    def show(self, findings: Sequence[Finding]) -> None:
        """What the pre-flight found, one line each."""
        for x in findings:
            sign, style = {"fine": ("✓", "green"), "warning": ("!", "bold yellow"), "error": ("✗", "bold red")}[x.level]
            line = (
                Text(f"{sign} ", style)
                + Text(f"{x.name}: ", "cyan")
                + Text(str(x.message), "" if x.level == "fine" else style)
            )
            self.console.print(line, soft_wrap=True)

    def warn(self, words: str) -> None:
        """Something that does not stop the run, but should be known."""
        self.console.print(words, style="bold yellow", soft_wrap=True, markup=False)

    def report(self, run: Run, *decisions: Decision) -> None:
        """Print what was chosen, with the reason, and record it in the Run."""
        changed = run.record(*decisions)
        for x in decisions:
            if not x.requested:
                self.console.print(f"[cyan]{x.key}[/] = {x.shown_value}  [dim]({x.reason})[/]", soft_wrap=True)
        self.warn_of_change(*changed)

    def warn_of_change(self, *changed: tuple[str, Any, Any]) -> None:
        """(key, was, is): what is no longer as it was when a run that goes on was stopped."""
        for key, was, now in changed:
            self.warn(f"{key} was {was} before, now it is {now}: numbers may differ in their last bits")
