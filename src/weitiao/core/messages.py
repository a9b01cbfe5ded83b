"""Sentences that users read: an English template where it is raised, its 中文 in locale/zh.json.

    Message("{path} has {n:,} rows", path=file, n=1200)     str() -> "a.jsonl has 1,200 rows" / "a.jsonl 共 1,200 行"

A record (an event, a finding, a decision) stores the template and its fields, and the sentence is made when it is shown,
so a Run reads in either language. The template is the message id, as in gettext.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
CATALOGUES = Path(__file__).parent.parent / "locale"
_CHOSEN: ContextVar[str] = ContextVar("language", default="")


class Message:
    """A template with named fields, turned into text in the reader's language by `str()`."""

    __slots__ = ("fields", "template")
    template: str
    fields: dict[str, Any]

    def __init__(self, template: "str | Message", /, **fields: Any) -> None:
        if isinstance(template, Message):
            template, fields = template.template, {**template.fields, **fields}
        self.template: str = template
        self.fields = fields

    def __str__(self) -> str:
        text = translate(self.template)
        return text.format_map(self.fields) if self.fields else text

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __repr__(self) -> str:
        return f"Message({self.template!r}, {self.fields!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and (self.template, self.fields) == (other.template, other.fields)

    def __hash__(self) -> int:
        return hash(self.template)

    def __bool__(self) -> bool:
        return bool(self.template)

    def as_json(self) -> dict[str, Any]:
        """What a record stores: {"template": ..., "fields": {...}}."""
        return {"template": self.template, "fields": {key: _plain(value) for key, value in self.fields.items()}}

    @classmethod
    def from_json(cls, record: Any) -> "Message":
        """The message of a record; a plain string is a message without fields."""
        if not isinstance(record, dict):
            return cls(str(record))
        return cls(record["template"], **{key: _restored(value) for key, value in record["fields"].items()})


def joined(separator: str, parts: Iterable[Message | str]) -> Message:
    """Several messages as one, with a separator that is the same in every language ("; ", a line break)."""
    fields = {f"part{i}": x for i, x in enumerate(parts)}
    return Message(separator.join(f"{{{name}}}" for name in fields), **fields)


def translate(template: str) -> str:
    """A template in the reader's language; English where the catalogue has no entry."""
    chosen = language()
    return template if chosen == "en" else _catalogue(chosen).get(template, template)


def language() -> str:
    """WEITIAO_LANG (en, zh), or the locale's language where it is one of ours, or English."""
    if chosen := _CHOSEN.get():
        return chosen
    for name in ("WEITIAO_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return next((x for x in LANGUAGES if value.lower().startswith(x)), "en")
    return "en"


@contextmanager
def reading_in(name: str) -> Iterator[None]:
    """Inside, every message is in this language: for a page that holds both."""
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


@cache
def _catalogue(name: str) -> dict[str, str]:
    return json.loads((CATALOGUES / f"{name}.json").read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.as_json()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _restored(value: Any) -> Any:
    return Message.from_json(value) if isinstance(value, dict) and "template" in value else value
