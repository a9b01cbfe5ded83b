"""A model's own Jinja chat template, rendered in a sandbox (core/jinja_sandbox.py)."""

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Turn
from weitiao.core.files import file_sha256
from weitiao.core.jinja_sandbox import Sandbox, time_limit
from weitiao.core.messages import Message
from weitiao.data.chat.messages import PLAIN, MessageForm, as_messages

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json", "spiece.model", "sentencepiece.bpe.model",
    "source.spm", "target.spm", "target_vocab.json",
)  # fmt: skip
NO_TEMPLATE = Message(
    "this model has no chat template (it is a base model). For objective: sft set chat_template: chatml or a .jinja file; "
    "for plain text use objective: causal_lm"
)


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
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _reject
        self.text, self.special, self.now = text, special, now or datetime.datetime.now()
        environment.globals["strftime_now"] = self.now.strftime
        try:
            self.compiled = environment.compiled(text, "chat template")
        except jinja2.TemplateError as error:
            raise DataError(
                "chat_template, line {line}: {error}", line=getattr(error, "lineno", "?"), error=str(error)
            ) from None

    def __reduce__(self) -> Any:
        """Compiled again where it is unpickled."""
        return Template, (self.text, self.special, self.now)

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
            with time_limit():
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


def tokenizer_identity(folder: Path, text: str | dict[str, str] | None, template: Template | None = None) -> str:
    """Sixteen hex digits of a hash over the tokenizer's files, the template's text and the date that it writes."""
    files = [(name, file_sha256(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    dates = [template.date] if template is not None and template.writes_date else []
    return hashlib.sha256(json.dumps([files, text, *dates]).encode()).hexdigest()[:16]
