"""Processor: words to token ids, as an objective sees it. data/processor.py holds the one there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from weitiao.core.example import Sound, Turn


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, and which of them the assistant says."""

    ids: list[int]
    said: list[bool]
    """True on the assistant's tokens and on the stop token that ends its turn."""


@dataclass(frozen=True)
class Frame:
    """The special tokens around a text and between two: [CLS] a [SEP] b [SEP]."""

    first: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    """Never empty: the end-of-text token where the tokenizer adds none."""


class Ear(Protocol):
    """How a model hears; data/sound.py holds the one there is."""

    @property
    def places(self) -> int:
        """S: places of a sound in a row, and hidden states of the encoder."""
        ...

    @property
    def seconds(self) -> float:
        """The longest sound that it hears."""
        ...

    def begun(self, language: str | None) -> list[int]:
        """What the decoder is told before it writes."""
        ...

    def features(self, sound: Sound) -> Tensor:
        """fp32 [mels, 2 S] of a sound file."""
        ...

    def save(self, folder: Path) -> None:
        """Write what makes the features beside a model."""
        ...


class Processor(Protocol):
    """Words to token ids."""

    eos_id: int
    stop_ids: tuple[int, ...]
    frame: Frame
    mask_id: int | None
    """[MASK]; None: the tokenizer has none."""
    start_id: int | None
    """What a decoder begins to write from, where an encoder reads beside it; None: there is none."""
    ear: Ear | None
    """How the encoder hears; None: it reads text."""

    def placed(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Plain text without special tokens: ids, and where each token begins and ends in the text, in characters."""
        ...

    def in_words(self, text: str) -> tuple[list[int], list[int]]:
        """Plain text without special tokens: ids, and which word of the text each belongs to, as the tokenizer parts it."""
        ...

    def said(self, text: str) -> list[int]:
        """What is said in a sound, as a model that hears writes it, without special tokens."""
        ...

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
