"""A model's own Jinja chat template, rendered in a sandbox with bounds.

A template is downloaded code. The sandbox keeps it away from the machine; the bounds stop endless loops and huge strings
('a' * 4000000000), which a sandbox alone does not.
"""

import datetime
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Turn
from weitiao.core.files import file_sha256
from weitiao.core.messages import Message
from weitiao.data.chat.messages import PLAIN, MessageForm, as_messages

TIME_LIMIT = 5.0  # seconds; one conversation renders in well under a millisecond
THREAD_TIME_LIMIT = 1.0  # seconds of the thread's own time, where a server renders outside the main thread
MAX_CHARACTERS = 10_000_000  # of one string that a template builds

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json", "spiece.model", "sentencepiece.bpe.model",
    "source.spm", "target.spm", "target_vocab.json",
)  # fmt: skip
NO_TEMPLATE = Message(
    "this model has no chat template (it is a base model). For objective: sft set chat_template: chatml or a .jinja file; "
    "for plain text use objective: causal_lm"
)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (
            any(isinstance(x, (str, list, tuple)) for x in (left, right)) and _grows(operator, left, right)
        ):
            raise jinja2.exceptions.SecurityError(f"it computes {left!r:.20} {operator} {right!r:.20}")
        return super().call_binop(context, operator, left, right)


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


class _Generation(Extension):
    """transformers' {% generation %} ... {% endgeneration %}, which marks assistant tokens; we find those without it."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_template(name: str | None) -> str | None:
    """The text of `chat_template`: a name from data/templates, or a file.

    Raises:
        DataError: there is no such template and no such file.
    """
    if name is None:
        return None
    shipped = Path(__file__).parents[1] / "templates"
    for path in (shipped / f"{name}.jinja", Path(name).expanduser()):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    available = ", ".join(sorted(x.stem for x in shipped.glob("*.jinja")))
    raise DataError(
        "chat_template: {name} is neither a file nor a built-in template; built-in are: {known}", name=name, known=available
    )


class Template:
    """A compiled chat template."""

    def __init__(self, text: str, special: dict[str, str], now: datetime.datetime | None = None) -> None:
        """Args:
        special: bos_token and the like, which it may write.
        now: the date that it writes; default: today's.
        """
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        environment.filters["tojson"] = _tojson
        environment.filters["center"] = _center
        environment.globals["raise_exception"] = _reject
        self.text, self.special, self.now = text, special, now or datetime.datetime.now()
        environment.globals["strftime_now"] = self.now.strftime
        try:
            environment.globals["joined"] = _joined
            tree = _BoundJoins().visit(environment.parse(text))
            code = environment.compile(tree, "chat template")
            self.compiled = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        except jinja2.TemplateError as error:
            raise DataError(
                "chat_template, line {line}: {error}", line=getattr(error, "lineno", "?"), error=str(error)
            ) from None

    @property
    def writes_date(self) -> bool:
        """Whether it can write the date or the time of day."""
        return "strftime_now" in self.text

    @property
    def date(self) -> str:
        """The date as it writes it; if its formats are not constants, the whole moment."""
        formats = re.findall(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""", self.text)
        if len(formats) < self.text.count("strftime_now("):
            return self.now.isoformat(timespec="minutes")
        return "; ".join(dict.fromkeys(self.now.strftime(a or b) for a, b in formats))

    def render(self, turns: Sequence[Turn], ask: bool = False, tools: str = "", form: MessageForm = PLAIN) -> str:
        """A conversation as one string; `ask` adds the generation prompt.

        Args:
            tools: as a JSON list; "" if there are none.
            form: how the template expects tool calls and reasoning.

        Raises:
            InvalidValue: the template rejects these turns (some require user and assistant to alternate).
            DataError: it runs too long, or does what a template must not do.
        """
        messages = as_messages(turns, form)
        try:
            with _time_limit(TIME_LIMIT):
                more = {"tools": json.loads(tools) if tools else None, "documents": None, **self.special}
                return self.compiled.render(messages=messages, add_generation_prompt=ask, **more)
        except _Rejected as error:
            raise InvalidValue("the chat template rejects this conversation: {error}", error=str(error)) from None
        except Exception as error:  # downloaded code: whatever it raises, the user needs one sentence
            raise DataError("chat_template: it cannot be rendered: {error}", error=str(error)) from None


def _tojson(value: Any, **settings: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **settings})


class _Rejected(jinja2.TemplateError):
    pass


def _reject(reason: str) -> None:
    raise _Rejected(reason)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        with _thread_time_limit(THREAD_TIME_LIMIT):
            yield
        return
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"it ran longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _thread_time_limit(seconds: float) -> Iterator[None]:
    """Where no signal can arrive: the clock is looked at with every line of Python that the template runs."""
    until, before = time.thread_time() + seconds, sys.gettrace()

    def look(*_: Any) -> Any:
        if time.thread_time() > until:
            raise TimeoutError(f"it ran longer than {seconds:g} seconds")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def tokenizer_identity(folder: Path, text: str | dict[str, str] | None, template: Template | None = None) -> str:
    """Sixteen hex digits of a hash over the tokenizer's files, the template's text and the date that it writes."""
    files = [(name, file_sha256(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    dates = [template.date] if template is not None and template.writes_date else []
    return hashlib.sha256(json.dumps([files, text, *dates]).encode()).hexdigest()[:16]
