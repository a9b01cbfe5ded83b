"""Processor: words to token ids, as an objective sees it. data/processor.py holds the one there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weitiao.core.example import Turn


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, and which of them the assistant says."""

    ids: list[int]
    said: list[bool]
    """True on the assistant's tokens and on the stop token that ends its turn."""


class Processor(Protocol):
    """Words to token ids."""

    eos_id: int
    stop_ids: tuple[int, ...]

    def text(self, text: str) -> list[int]:
        """Plain text, with the beginning-of-text token if the model has one."""
        ...

    def chat(self, turns: Sequence[Turn]) -> list[Rendered]:
        """A conversation through the model's template: one row, or one a turn where the template rewrites history."""
        ...

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """A conversation up to where the assistant begins to speak."""
        ...

    def spelt(self, ids: Sequence[int]) -> str:
        """Token ids back to text, special tokens included."""
        ...

    def words(self, ids: Sequence[int]) -> str:
        """Token ids back to words, without special tokens."""
        ...
