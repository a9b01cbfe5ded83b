"""The contract Cleaner: a rule that changes texts, or that says which rows are left out.

    data: {path: scraped.jsonl, cleaners: [unicode, html, {name: length, min_characters: 20}]}

A rule is a pure function of one row, so that any number of processes gives the same rows. It sees the strings that the
columns' mapping reads as text, never roles, labels, ids or the arguments of tools.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from weitiao.core.messages import Message
from weitiao.core.registry import Component

PartRole = Literal["text", "prompt", "answer", "system"]


@dataclass(frozen=True)
class TextPart:
    """One text of a row, and where in the row it is."""

    path: tuple[str | int, ...]
    """The keys and indexes that lead to it: ("messages", 2, "content")."""
    role: PartRole
    """What it is to the model: an answer is learnt, a prompt or a system message is given, a text is either."""
    text: str

    @property
    def field(self) -> str:
        """
        >>> TextPart(("messages", 2, "content"), "prompt", "hi").field
        'messages[2].content'
        """
        keys = (f"[{x}]" if isinstance(x, int) else f".{x}" for x in self.path)
        return "".join(keys).removeprefix(".")


class Cleaner(Component):
    """One file in data/cleaners/ holds one rule: a frozen model of its settings."""

    version: ClassVar[int] = 1
    """Raised when the rule gives other results than before: it is part of what a cleaned folder was made with."""

    def identity(self) -> dict[str, object]:
        """The rule, its settings and its version: what its results depend on."""
        return {**self.as_recipe(), "version": self.version}

    def check(self) -> None:
        """Whether the rule can work here.

        Raises:
            RecipeError: a package that it needs is not installed.
        """


class TextCleaner(Cleaner):
    """A rule that changes texts, each on its own."""

    @abstractmethod
    def clean(self, text: str) -> str:
        """The text without what the rule removes."""


class RowCleaner(Cleaner):
    """A rule that says which rows are left out."""

    action: Literal["drop", "hint"] = "drop"
    """drop: such rows are left out (quarantined); hint: they are kept, counted and listed."""

    @abstractmethod
    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """Why a row with these texts is not kept; None: it is."""
