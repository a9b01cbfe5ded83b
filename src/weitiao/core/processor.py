"""Processor: text and audio to model inputs, as objectives use it; data/tokenization.py and data/audio.py implement it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from weitiao.core.example import Audio, Turn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids, with the mask of what is trained on."""

    ids: list[int]
    assistant_mask: list[bool]
    """True on the tokens of the assistant's turns that carry loss, including the stop token that ends a turn."""


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens around a text and between two: [CLS] a [SEP] b [SEP]."""

    first: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    """Never empty: the end-of-text token where the tokenizer adds none."""


@dataclass(frozen=True)
class Target:
    """A target as the decoder of an encoder-decoder model generates it."""

    start: int
    """The decoder's first token, which is not generated."""
    ids: list[int]
    language: int | None = None
    """The language code, where that is the first token that is generated."""


class FeatureExtractor(Protocol):
    """Audio to the input features of a speech model."""

    @property
    def num_positions(self) -> int:
        """S: the encoder's hidden states per audio, and its positions in a row."""
        ...

    @property
    def seconds(self) -> float:
        """The longest audio the model takes."""
        ...

    def decoder_prompt_ids(self, language: str | None) -> list[int]:
        """The decoder's first tokens, before the transcript.

        Args:
            language: spoken, as a code (en, zh); None: a model of one language.
        """
        ...

    def features(self, audio: Audio) -> "Tensor":
        """Log-mel features of an audio file, [mel bins, 2 S] fp32."""
        ...

    def save(self, folder: Path) -> None:
        """Write the extractor's config next to a model."""
        ...


class Processor(Protocol):
    """Text to token ids and back. Special tokens in a text are ordinary text, unless `parsing_special_tokens`."""

    eos_id: int
    stop_ids: tuple[int, ...]
    """Tokens that end an answer; the first also serves as padding."""
    special_tokens: SpecialTokens
    mask_id: int | None
    """[MASK]; None: the tokenizer has none."""
    feature_extractor: FeatureExtractor | None
    """None: the model reads text."""

    @property
    def parsing_special_tokens(self) -> "Processor":
        """The same processor, for texts whose special tokens are meant to be control tokens."""
        ...

    def contains_special_tokens(self, text: str) -> bool:
        """Whether a text spells a special token."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids without special tokens, and each token's (start, end) in the text, in characters."""
        ...

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids without special tokens, and the number of each token's word, as the tokenizer splits words."""
        ...

    def encode_transcript(self, text: str) -> list[int]:
        """A transcript as a speech model generates it, without special tokens."""
        ...

    def text(self, text: str, masks: bool = False) -> list[int]:
        """Plain text, with the beginning-of-text token if the model has one.

        Args:
            masks: where the text spells the mask token, it is one.
        """
        ...

    def source(self, text: str, source_language: str | None, target_language: str | None) -> list[int]:
        """The source of a translation or any other rewriting, for an encoder-decoder model."""
        ...

    def target(self, text: str, source_language: str | None, target_language: str | None) -> Target:
        """Its target, by the target's own vocabulary and in its language."""
        ...

    def chat(self, turns: Sequence[Turn], tools: str = "") -> list[Rendered]:
        """A conversation in the model's chat template: one row, or one per turn where the template rewrites history.

        Args:
            tools: that the assistant may call, as a JSON list; "" if there are none.
        """
        ...

    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[int]:
        """A conversation up to where the assistant's answer begins."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids to text."""
        ...
