"""The contract of a model that an engine runs: new tokens of several rows in, the next logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class RowTokens:
    """New tokens of one row."""

    slot: int
    past: int
    """The row's tokens that have run already."""
    ids: Sequence[int]
    adapter: str = ""
    wants_logits: bool = True
    """Whether the next token is to be chosen; not while only a part of the prompt has run."""


class CachedForward(Protocol):
    """A model that keeps keys and values in slots."""

    keeps_prefixes: bool
    """Whether slots keep what they hold when their rows end, and it can be copied."""

    def run(self, rows: Sequence[RowTokens]) -> Tensor:
        """[N, V] fp32: the logits after the last token of each row that wants them, in the rows' order."""
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        ...

    def fits(self, num_slots: int, length: int) -> bool:
        """Whether so many slots of so many tokens each are within the memory for keys and values."""
        ...

    def release(self, slot: int) -> None:
        """The row of a slot has ended."""
        ...

    def clear(self) -> None:
        """Forget all slots, and free their memory."""
        ...
