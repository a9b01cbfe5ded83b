"""Processor: words to token ids, as an objective sees it. data/processor.py holds the one there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from weitiao.core.example import Audio, Turn


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, and which of them the assistant says."""

    ids: list[int]
    assistant_mask: list[bool]
    """True on the assistant's tokens and on the stop token that ends its turn."""


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens around a text and between two: [CLS] a [SEP] b [SEP]."""

    first: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    """Never empty: the end-of-text token where the tokenizer adds none."""


class FeatureExtractor(Protocol):
    """How a model hears; data/sound.py holds the one there is."""

    @property
    def num_positions(self) -> int:
        """S: places of a sound in a row, and hidden states of the encoder."""
        ...

    @property
    def seconds(self) -> float:
        """The longest sound that it hears."""
        ...

    def decoder_prompt_ids(self, language: str | None) -> list[int]:
        """What the decoder is told before it writes."""
        ...

    def features(self, sound: Audio) -> Tensor:
        """fp32 [mels, 2 S] of a sound file."""
        ...

    def save(self, folder: Path) -> None:
        """Write what makes the features beside a model."""
        ...


class Processor(Protocol):
    """Words to token ids."""

    eos_id: int
    stop_ids: tuple[int, ...]
    frame: SpecialTokens
    mask_id: int | None
    """[MASK]; None: the tokenizer has none."""
    start_id: int | None
    """What a decoder begins to write from, where an encoder reads beside it; None: there is none."""
    feature_extractor: FeatureExtractor | None
    """How the encoder hears; None: it reads text."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Plain text without special tokens: ids, and where each token begins and ends in the text, in characters."""
        ...

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Plain text without special tokens: ids, and which word of the text each belongs to, as the tokenizer parts it."""
        ...

    def encode_transcript(self, text: str) -> list[int]:
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

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids to text."""
        ...
