"""Audio: a file becomes mono samples at 16 kHz, and those become the log-mel features that Whisper reads.

    file (wav, flac, ogg; any rate, any channels) -> mean of the channels -> 16 kHz -> [mels, 2 S] when the row is loaded

A file is decoded once when the data are read, to report unusable files and to record its sha256, and again whenever a row
is loaded: features of all rows would fill a disk (960 kB per row). A file that changed in between is an error.

Radford et al. 2022, arXiv 2212.04356, sec. 2.2: 16 kHz, 80 mel channels, 25 ms windows every 10 ms, padded to 30 s.
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

from weitiao.core.errors import DataError, InvalidValue, ModelError, RecipeError
from weitiao.core.example import Audio, AudioText, Example

SAMPLE_RATE = 16_000  # Hz
MULTILINGUAL_VOCABULARY = 51865  # a Whisper with at least this many tokens is multilingual


def load_audio(example: Example, folder: Path) -> Example:
    """The example with its resolved file path, the sha256 of the file and its length.

    Args:
        folder: the folder of the data file, which relative paths refer to.

    Raises:
        InvalidValue: the file is missing, empty, not audio, or silent.
    """
    assert isinstance(example, AudioText)
    file, raw = _read(example.text, folder)
    samples = decode_audio(raw, str(file))
    if not len(samples):
        raise InvalidValue("the audio file {file} has no samples", file=file)
    if not samples.any():
        raise InvalidValue("the audio file {file} is silent: every sample is zero", file=file)
    return replace(example, text=str(file), sha256=hashlib.sha256(raw).hexdigest(), seconds=len(samples) / SAMPLE_RATE)


def _read(name: str, folder: Path) -> tuple[Path, bytes]:
    """(path, bytes) of an audio file.

    Raises:
        InvalidValue: there is none, or it cannot be read.
    """
    try:
        file = Path(name).expanduser()
        file = file if file.is_absolute() else folder / file
        if file.is_file():
            return file, file.read_bytes()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown ~user, a null byte
        file = Path(name[:200])
    raise InvalidValue("there is no audio file {file}", file=file)


def decode_audio(raw: bytes, file: str) -> np.ndarray:
    """The bytes of an audio file as fp32 samples [n] between -1 and 1, mono, at 16 kHz.

    Args:
        file: its name, for messages.

    Raises:
        InvalidValue: the bytes are not audio that can be decoded, or have NaN or infinite samples.
        DataError: soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError:
        raise DataError("data: audio needs soundfile. Install it with: pip install 'weitiao[audio]'") from None
    if not raw:
        raise InvalidValue("the audio file {file} is empty", file=file)
    try:
        channels, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rpartition(": ")[2]
        raise InvalidValue("the audio file {file} cannot be decoded: {reason}", file=file, reason=reason) from None
    mono = channels.mean(1)
    if not np.isfinite(mono).all():
        raise InvalidValue("the audio file {file} has samples that are NaN or infinite", file=file)
    return resample(mono, rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """fp32 samples [n] at 16 kHz, by a polyphase filter (no aliasing)."""
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(samples, SAMPLE_RATE // common, rate // common).astype(np.float32)


@dataclass(frozen=True)
class WhisperFeatureExtraction:
    """The feature extractor of a Whisper model, and the prompt of its decoder."""

    extractor: Any
    """transformers' WhisperFeatureExtractor."""
    num_positions: int
    """S: hidden states of the encoder; each covers two feature columns."""
    start: int
    plain: int
    """<|notimestamps|>"""
    languages: dict[str, int] = field(default_factory=dict)
    """Language code -> its token; empty: an English-only model."""
    transcribe: int = 0

    @property
    def seconds(self) -> float:
        """The longest audio the model takes, in seconds."""
        return float(self.extractor.chunk_length)

    def decoder_prompt_ids(self, language: str | None) -> list[int]:
        """<|startoftranscript|> (<|zh|> <|transcribe|>) <|notimestamps|>: the prompt of the decoder.

        Raises:
            RecipeError: the language is unknown, or missing for a multilingual model.
        """
        if not self.languages:
            if language not in (None, "en"):
                raise RecipeError(
                    "objective.language: this base is English-only; it does not know {language!r}", language=language
                )
            return [self.start, self.plain]
        if language not in self.languages:
            languages = ", ".join(sorted(self.languages)[:100])
            if language is None:
                raise RecipeError("objective.language: this base is multilingual; set one of: {known}", known=languages)
            raise RecipeError(
                "objective.language: unknown language {language!r}; set one of: {known}", language=language, known=languages
            )
        return [self.start, self.languages[language], self.transcribe, self.plain]

    def features(self, audio: Audio) -> Tensor:
        """fp32 log-mel features [mels, 2 S] of an audio file.

        Raises:
            DataError: the file is missing or has changed since the data were read.
        """
        try:
            raw = Path(audio.file).read_bytes()
        except OSError:
            raise DataError("data: {file} has been removed since the data were read", file=audio.file) from None
        if hashlib.sha256(raw).hexdigest() != audio.sha256:
            raise DataError(
                "data: {file} has changed since the data were read. Restore the old file, or train again", file=audio.file
            )
        batch = self.extractor(decode_audio(raw, audio.file), sampling_rate=SAMPLE_RATE, return_tensors="np")
        return torch.from_numpy(np.ascontiguousarray(batch.input_features[0], np.float32))

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json into a model folder."""
        self.extractor.save_pretrained(folder)


def load_feature_extractor(folder: Path, tokenizer: Any) -> WhisperFeatureExtraction:
    """The feature extractor of the speech model in a folder.

    Raises:
        ModelError: preprocessor_config.json or Whisper's special tokens are missing.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            "base: {folder} has no usable preprocessor_config.json: {error}",
            folder=folder,
            error=str(error).splitlines()[0][:160],
        ) from None
    if extractor.nb_max_frames != 2 * config.max_source_positions:
        raise ModelError(
            "base: preprocessor_config.json in {folder} makes {columns} feature columns, but the encoder takes {expected}",
            folder=folder,
            columns=extractor.nb_max_frames,
            expected=2 * config.max_source_positions,
        )
    ids = {str(token.content): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    if missing := [x for x in ("<|startoftranscript|>", "<|notimestamps|>") if x not in ids]:
        raise ModelError(
            "base: the tokenizer in {folder} is not Whisper's: it has no {tokens}", folder=folder, tokens=", ".join(missing)
        )
    start, plain, num_positions = ids["<|startoftranscript|>"], ids["<|notimestamps|>"], config.max_source_positions
    languages = _languages(folder, config, ids)
    return WhisperFeatureExtraction(extractor, num_positions, start, plain, languages, ids.get("<|transcribe|>", 0))


def _languages(folder: Path, config: Any, ids: dict[str, int]) -> dict[str, int]:
    """Language code -> token id, from the generation config; empty for an English-only model."""
    tokens: dict[str, int] = {}
    multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        multilingual = getattr(generation, "is_multilingual", multilingual)
        tokens = getattr(generation, "lang_to_id", None) or {}
    if not multilingual:
        return {}
    tokens = tokens or {name: i for name, i in ids.items() if len(name) == len("<|zh|>")}
    return {name.strip("<|>"): i for name, i in tokens.items()}


def with_leading_space(text: str) -> str:
    """A transcript as Whisper generates it: with a leading space, but without one before Chinese or Japanese.

    >>> with_leading_space("Good morning."), with_leading_space("早上好。")
    (' Good morning.', '早上好。')
    """
    first = text.lstrip()[:1]
    return text.strip() if "\u2e80" <= first <= "\u9fff" or "\uff00" <= first <= "\uffef" else f" {text.strip()}"
