"""Example: one piece of data, still in human words. Small frozen types, no tensors.

An Objective declares which one it eats; a mapping (data/mapping.py) says which one it makes of a file's columns.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Where:
    """Where a piece of data came from, so that a complaint can name it."""

    file: str
    line: int
    """Counted from 1. For a table, the row."""
    offset: int | None = None
    """Bytes from the start of the file, where the format has such a thing."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" + (f", byte {self.offset}" if self.offset is not None else "")


@dataclass(frozen=True)
class Text:
    """Plain text to continue (continued pretraining)."""

    text: str


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation. The assistant's turns are learnt, the others are read."""

    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """Everything before the last assistant turn."""
        return self.turns[: self._last]

    @property
    def answer(self) -> str:
        """The last assistant turn's words."""
        return self.turns[self._last].content

    @property
    def _last(self) -> int:
        return max(i for i, turn in enumerate(self.turns) if turn.role == "assistant")


@dataclass(frozen=True)
class Labelled:
    """A text and its class; several classes, or none, where more than one may hold."""

    text: str
    labels: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The classes as one string."""
        return ", ".join(self.labels)


Example = Text | Chat | Labelled


@dataclass(frozen=True)
class Sourced:
    """An Example and where it came from."""

    example: Example
    where: Where
    source: int = 0
    """Which of the recipe's sources."""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used, and why. It goes to bad_rows.jsonl; the rest goes on."""

    where: Where
    reason: str
    excerpt: str = ""


def words_of(example: Example) -> str:
    """All the words of an example, as one string."""
    if isinstance(example, (Text, Labelled)):
        return example.text
    return "\n".join(f"{turn.role}: {turn.content}" for turn in example.turns)


def question_of(example: Example) -> str:
    """What the model is given: the words without the last answer. For a text, the text."""
    if isinstance(example, (Text, Labelled)):
        return example.text
    return "\n".join(f"{turn.role}: {turn.content}" for turn in example.prompt)


def plain(text: str) -> str:
    """Words as they count when two texts are compared: NFKC, lower case, single spaces.

    >>> plain("  Ｈello\\n  World ")
    'hello world'
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    """sha256 of the plain form: equal for texts that differ only in case, width or spaces."""
    return hashlib.sha256(plain(text).encode("utf-8", "surrogatepass")).hexdigest()
