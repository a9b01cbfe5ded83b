"""Jinja templates of strangers: chat templates, exam tasks. Rendered in a sandbox with bounds.

A template is downloaded code. The sandbox keeps it away from the machine; the bounds stop endless loops and huge strings
('a' * 4000000000), which a sandbox alone does not.
"""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

TIME_LIMIT = 5.0  # seconds; one text renders in well under a millisecond
THREAD_TIME_LIMIT = 1.0  # seconds of the thread's own time, where a server renders outside the main thread
MAX_CHARACTERS = 10_000_000  # of one string that a template builds


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for templates that nobody has read."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.filters["center"] = _center
        self.globals["joined"] = _joined

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str and len(left) + len(right) <= MAX_CHARACTERS:
            return left + right  # nearly all that templates compute
        if operator == "**" or (
            any(isinstance(x, (str, list, tuple)) for x in (left, right)) and _grows(operator, left, right)
        ):
            raise jinja2.exceptions.SecurityError(f"it computes {left!r:.20} {operator} {right!r:.20}")
        return super().call_binop(context, operator, left, right)

    def compiled(self, text: str, name: str) -> jinja2.Template:
        """A template of this environment.

        Args:
            name: what its errors call it.

        Raises:
            jinja2.TemplateError: it is not valid.
        """
        code = self.compile(_BoundJoins().visit(self.parse(text)), name)
        return jinja2.Template.from_code(self, code, self.make_globals(None))


def _grows(operator: str, left: Any, right: Any) -> bool:
    """Whether the result would be longer than a template may build."""
    a, b = (len(x) if isinstance(x, (str, list, tuple)) else x for x in (left, right))
    if operator == "%":
        return isinstance(left, str) and any(int(n) > 10_000 for n in re.findall(r"\d+", left[:MAX_CHARACTERS]))
    if not isinstance(a, int) or not isinstance(b, int):
        return False
    return (a * b if operator == "*" else a + b) > MAX_CHARACTERS


def _center(text: str, width: int = 80) -> str:
    return str(text).center(min(width, 10_000))


def _joined(*parts: Any) -> str:
    text = "".join(map(str, parts))
    if len(text) > MAX_CHARACTERS:
        raise jinja2.exceptions.SecurityError(f"it joins more than {MAX_CHARACTERS:,} characters")
    return text


class _BoundJoins(NodeTransformer):
    """`a ~ b` becomes joined(a, b): the one operator that the sandbox does not intercept."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return nodes.Call(nodes.Name("joined", "load"), node.nodes, [], None, None, lineno=node.lineno)


@contextmanager
def time_limit() -> Iterator[None]:
    """Inside, a template that runs longer than TIME_LIMIT is stopped by a TimeoutError."""
    if threading.current_thread() is not threading.main_thread():
        with _thread_time_limit(THREAD_TIME_LIMIT):
            yield
        return
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, frame: FrameType | None) -> None:
        if _is_of_template(frame):
            raise TimeoutError(f"it ran longer than {TIME_LIMIT:g} seconds")
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # again, soon

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _thread_time_limit(seconds: float) -> Iterator[None]:
    """Where no signal can arrive: the clock is looked at with every line of Python that the template runs."""
    until, before = time.thread_time() + seconds, sys.gettrace()

    def look(frame: FrameType, *_: Any) -> Any:
        if time.thread_time() > until and _is_of_template(frame):
            raise TimeoutError(f"it ran longer than {seconds:g} seconds")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _is_of_template(frame: FrameType | None) -> bool:
    """Whether an error raised here reaches who renders: one raised in a finalizer or a weak reference is swallowed."""
    names = frame.f_globals if frame else {}
    return isinstance(names.get("environment"), Sandbox) or names.get("__name__", "").startswith("jinja2.")
