"""Sound: a file becomes one line of samples at 16 kHz, and these the log-mel features that a Whisper hears.

    file (wav, flac, ogg; any rate, any channels) -> mean of the channels -> 16 kHz -> [mels, 2 S] when the row is loaded

Read once when the data are read, to name what cannot be used and to know the bytes (sha256); read again when a row is
loaded, since features of all rows at once would fill a disk (960 kB a row). A file that has changed in between is refused.

Radford et al. 2022, arXiv 2212.04356, sec. 2.2: 16 kHz, 80 mel channels, windows of 25 ms every 10 ms, filled up to 30 s.
"""

import hashlib
import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoFeatureExtractor, GenerationConfig

from weitiao.core.errors import DataError, ModelError, RecipeError
from weitiao.core.example import Audio, AudioText, Example

RATE = 16_000  # samples a second
SEVERAL = 51865  # tokens, from which on a Whisper knows more languages than English
INSTALL = "sound needs the library soundfile: pip install 'weitiao[audio]'."


def load_audio(example: Example, folder: Path) -> Example:
    """The example with its file found beside the data file, its bytes' sha256, and how long it is.

    Raises:
        ValueError: the file is missing, empty, no sound, or silence.
    """
    assert isinstance(example, AudioText)
    file = Path(example.text).expanduser()
    file = file if file.is_absolute() else folder / file
    if not file.is_file():
        raise ValueError(f"there is no sound file {file}")
    raw = file.read_bytes()
    samples = samples_of(raw, str(file))
    if not len(samples):
        raise ValueError(f"the sound in {file} has no length")
    if not samples.any():
        raise ValueError(f"the sound in {file} is silence: every sample is 0")
    return replace(example, text=str(file), sha256=hashlib.sha256(raw).hexdigest(), seconds=len(samples) / RATE)


def samples_of(raw: bytes, file: str) -> np.ndarray:
    """A file's bytes as fp32 [n] between -1 and 1, one channel, 16,000 a second.

    Raises:
        ValueError: the bytes are no sound that can be read, or hold what is no number.
        DataError: the library is not installed.
    """
    try:
        import soundfile
    except ImportError:
        raise DataError(f"data: {INSTALL}") from None
    if not raw:
        raise ValueError(f"the sound file {file} is empty")
    try:
        both, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the sound file {file} cannot be read: {str(error).rpartition(': ')[2]}") from None
    one = both.mean(1)
    if not np.isfinite(one).all():
        raise ValueError(f"the sound in {file} holds what is no number (NaN or infinite)")
    return resampled(one, rate)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """fp32 [n] at 16 kHz, by a polyphase filter that lets no overtone fold back."""
    if rate == RATE or not len(samples):
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common).astype(np.float32)


@dataclass(frozen=True)
class WhisperFeatureExtraction:
    """How one Whisper hears: its features, and what its decoder is told before it writes."""

    extractor: Any
    """transformers' WhisperFeatureExtractor."""
    num_positions: int
    """S: hidden states of the encoder, two features' columns each."""
    start: int
    plain: int
    """<|notimestamps|>"""
    languages: dict[str, int] = field(default_factory=dict)
    """zh -> the token; none: it hears English alone."""
    transcribe: int = 0

    @property
    def seconds(self) -> float:
        """The longest sound that it hears."""
        return float(self.extractor.chunk_length)

    def decoder_prompt_ids(self, language: str | None) -> list[int]:
        """<|startoftranscript|> (<|zh|> <|transcribe|>) <|notimestamps|>: what the decoder begins from.

        Raises:
            RecipeError: the language is not known, or not said where there are several.
        """
        if not self.languages:
            if language not in (None, "en"):
                raise RecipeError(f"objective: language: this base hears English alone, not {language!r}.")
            return [self.start, self.plain]
        if language not in self.languages:
            some = ", ".join(sorted(self.languages)[:100])
            asked = "which language is spoken?" if language is None else f"{language!r} is not known."
            raise RecipeError(f"objective: language: {asked} This base hears several; write one of: {some}.")
        return [self.start, self.languages[language], self.transcribe, self.plain]

    def features(self, sound: Audio) -> Tensor:
        """fp32 [mels, 2 S] of a sound file.

        Raises:
            DataError: it is not the file that was read before.
        """
        try:
            raw = Path(sound.file).read_bytes()
        except OSError:
            raise DataError(f"data: {sound.file} was there when the data were read, and is no more.") from None
        if hashlib.sha256(raw).hexdigest() != sound.sha256:
            raise DataError(
                f"data: {sound.file} has changed since the data were read. Put the old file back, or train anew."
            )
        made = self.extractor(samples_of(raw, sound.file), sampling_rate=RATE, return_tensors="np")
        return torch.from_numpy(np.ascontiguousarray(made.input_features[0], np.float32))

    def save(self, folder: Path) -> None:
        """Write what makes the features beside a model."""
        self.extractor.save_pretrained(folder)


def load_feature_extractor(folder: Path, tokenizer: Any) -> WhisperFeatureExtraction:
    """The feature extractor of the speech model in a folder.

    Raises:
        ModelError: preprocessor_config.json or Whisper's special tokens are missing.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        words = str(error).splitlines()[0][:160]
        raise ModelError(f"base: {folder} lacks what makes features of sound (preprocessor_config.json): {words}") from None
    if extractor.nb_max_frames != 2 * config.max_source_positions:
        words = f"{extractor.nb_max_frames} columns of features, the encoder hears {2 * config.max_source_positions}"
        raise ModelError(f"base: preprocessor_config.json in {folder} makes {words}.")
    ids = {str(token.content): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    lacking = [x for x in ("<|startoftranscript|>", "<|notimestamps|>") if x not in ids]
    if lacking:
        raise ModelError(f"base: the tokenizer in {folder} has no {' and no '.join(lacking)}, so it is not Whisper's.")
    start, plain, num_positions = ids["<|startoftranscript|>"], ids["<|notimestamps|>"], config.max_source_positions
    languages = _languages(folder, config, ids)
    return WhisperFeatureExtraction(extractor, num_positions, start, plain, languages, ids.get("<|transcribe|>", 0))


def _languages(folder: Path, config: Any, ids: dict[str, int]) -> dict[str, int]:
    """zh -> <|zh|>'s token, as the generation config has it; none for a model of English alone."""
    known: dict[str, int] = {}
    several = config.vocab_size >= SEVERAL
    if (folder / "generation_config.json").exists():
        told = GenerationConfig.from_pretrained(folder, local_files_only=True)
        several = getattr(told, "is_multilingual", several)
        known = getattr(told, "lang_to_id", None) or {}
    if not several:
        return {}
    return {name.strip("<|>"): i for name, i in (known or {x: i for x, i in ids.items() if len(x) == 6}).items()}


def begun_with_space(text: str) -> str:
    """A text as Whisper writes it: a space before it, but none before Chinese or Japanese, which part no words.

    >>> begun_with_space("Good morning."), begun_with_space("早上好。")
    (' Good morning.', '早上好。')
    """
    first = text.lstrip()[:1]
    return text.strip() if "\u2e80" <= first <= "\u9fff" or "\uff00" <= first <= "\uffef" else f" {text.strip()}"
