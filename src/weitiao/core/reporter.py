"""Reporter: where a command prints, and what it shows while something takes long.

By default a command prints what a user must know; with `verbose` (`-v`) also every decision and every check. Bars and
spinners are drawn in a terminal only. A quiet console prints nothing.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from weitiao.core.events import Phase
from weitiao.core.finding import Decision, Finding
from weitiao.core.messages import Message
from weitiao.core.run import Change, Run
from weitiao.core.run_status import now

Item = TypeVar("Item")
SIGNS = {"fine": ("✓", "green"), "warning": ("!", "bold yellow"), "error": ("✗", "bold red")}
PATIENCE = 2.0  # s, after which a wait is shown
EVERY = 30.0  # s between two lines about a wait, where there is no terminal


def is_live(console: Console) -> bool:
    """Bars can be redrawn: in a terminal, and in a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@dataclass
class Reporter:
    """The terminal."""

    console: Console = field(default_factory=lambda: Console(highlight=False))
    verbose: bool = False
    """Every decision with its reason, and every check."""
    _spinner: Status | None = field(default=None, repr=False)

    # -- lines ------------------------------------------------------------------------------------------------------------

    def say(self, message: Message | str, style: str = "") -> None:
        """A line that everybody reads."""
        self.console.print(Text(str(message), style), soft_wrap=True)

    def detail(self, message: Message | str) -> None:
        """A line for `-v`."""
        if self.verbose:
            self.say(message, "dim")

    def warn(self, message: Message | str) -> None:
        """Something that does not stop the run, but should be known."""
        self.say(message, "bold yellow")

    def show(self, findings: Sequence[Finding]) -> None:
        """The preflight check: one line for each warning and error; the rest are counted, and listed with `-v`."""
        passed = 0
        for x in findings:
            if x.level == "fine" and not self.verbose:
                passed += 1
                continue
            sign, style = SIGNS[x.level]
            message = Text(str(x.message), "" if x.level == "fine" else style)
            self.console.print(Text(f"{sign} ", style) + Text(f"{x.name}: ", "cyan") + message, soft_wrap=True)
        if passed:
            self.console.print(
                Text("✓ ", "green")
                + Text(str(Message("{n} of {total} preflight checks passed", n=passed, total=len(findings))))
            )

    def report(self, run: Run, *decisions: Decision) -> None:
        """Record decisions in the Run; with `-v` print them with their reasons."""
        changes = run.record(*decisions)
        for x in decisions:
            if self.verbose and not x.requested:
                self.console.print(
                    Text(x.key, "cyan") + f" = {x.shown_value}  " + Text(f"({x.reason})", "dim"), soft_wrap=True
                )
        self.warn_of_change(*changes)

    def warn_of_change(self, *changes: Change) -> None:
        """What differs from when an interrupted run was started."""
        for key, was, value in changes:
            self.warn(
                Message(
                    "{key} was {was}, now it is {value}: results may differ in the last bits",
                    key=key,
                    was=str(was),
                    value=str(value),
                )
            )

    # -- waiting ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, run: Run, name: str, label: Message | None = None, total: int | None = None) -> Iterator[None]:
        """A part of a run: its start, its end and its seconds are logged, and a spinner says what it is doing.

        Args:
            name: a code: read, encode, load, preflight ...
            label: what the spinner says; None: something else draws on the terminal.
            total: how many steps are planned, where that is known.
        """
        started = time.perf_counter()
        run.log(Phase(name, "start", now(), total=total))
        with self.spin(label) if label is not None else nullcontext():
            yield
        run.log(Phase(name, "end", now(), round(time.perf_counter() - started, 3), total))

    @contextmanager
    def spin(self, label: Message | str) -> Iterator[None]:
        """Inside, a spinner says what is going on."""
        outer = self._spinner
        if not self.console.is_terminal or self.console.quiet or outer is not None:
            yield
            return
        self._spinner = Status(str(label), console=self.console)
        try:
            with self._spinner:
                yield
        finally:
            self._spinner = None

    @contextmanager
    def without_spinner(self) -> Iterator[None]:
        """Inside, something else may draw on the last line."""
        spinner = self._spinner
        if spinner is not None:
            spinner.stop()
        try:
            yield
        finally:
            if spinner is not None:
                spinner.start()

    def track(self, items: Sequence[Item], label: Message | str) -> Iterator[Item]:
        """The items, one by one, with a bar and the time left; outside a terminal a line now and then."""
        if self.console.quiet or len(items) < 2:
            yield from items
        elif is_live(self.console):
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with self.without_spinner(), Progress(*columns, console=self.console, transient=True) as bar:
                yield from bar.track(items, description=str(label))
        else:
            yield from self._track_in_lines(items, label)

    def _track_in_lines(self, items: Sequence[Any], label: Message | str) -> Iterator[Any]:
        due = time.monotonic() + PATIENCE
        for number, item in enumerate(items):
            if time.monotonic() >= due:
                self.say(Message("{label}: {n:,} of {total:,}", label=label, n=number, total=len(items)), "dim")
                due = time.monotonic() + EVERY
            yield item
