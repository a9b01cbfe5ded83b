"""Architecture: what a base model is, read from its config once and passed on to everything that depends on it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """The kind of network behind a base model.

    decoder           text -> next tokens              GPT-2, Llama, Qwen, Gemma
    encoder           text -> hidden states            BERT, RoBERTa, MiniLM
    encoder_decoder   text or audio -> target tokens   T5, BART, Marian, Whisper
    """

    kind: Literal["decoder", "encoder", "encoder_decoder"]
    model_type: str
    """The family, by transformers' name: llama, bert, t5, whisper ..."""
    modality: Literal["text", "speech"] = "text"
    """What the model reads."""
    max_length: int | None = None
    """The most tokens that the config allows; None: it names no limit."""
    has_position_table: bool = False
    """Positions are looked up in a table of max_length rows: more tokens are impossible. False: rotary or relative
    positions, for which max_length is the length the model was trained with."""
    decoder_start_id: int | None = None
    """The first token of a decoder that follows an encoder."""

    @property
    def num_positions(self) -> int | None:
        """How many tokens there are positions for; None: any number (rotary, relative)."""
        return self.max_length if self.has_position_table else None
