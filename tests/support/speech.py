"""A tiny Whisper with random weights for one second of audio, and tones as audio files."""

import json
import wave
from pathlib import Path

import numpy as np
import torch

from support.models import make_tokenizer

ENGLISH = ("<|startoftranscript|>", "<|notimestamps|>")
MULTILINGUAL = ("<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>")
ENCODER_POSITIONS = 50  # hidden states of the encoder in one second


def save_whisper(folder: Path, multilingual: bool = False) -> Path:
    """Model, tokenizer and feature extractor as a folder; `multilingual`: English and Chinese."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    tokenizer = make_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": [*ENGLISH, *MULTILINGUAL]})
    ids = {x: tokenizer.convert_tokens_to_ids(x) for x in (*ENGLISH, *MULTILINGUAL)}
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 2, "decoder_start_token_id": ids[ENGLISH[0]]}
    shape = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.1}
    reach = {"max_source_positions": ENCODER_POSITIONS, "max_target_positions": 64, "num_mel_bins": 80}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=len(tokenizer), **shape, **heads, **reach, **ends))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    languages = {"lang_to_id": {x: ids[x] for x in MULTILINGUAL[:2]}, "is_multilingual": True} if multilingual else {}
    model.generation_config = GenerationConfig(**ends, **languages, max_length=64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=1).save_pretrained(folder)
    return folder


def tone(hertz: float, seconds: float = 0.5, rate: int = 16_000, amplitude: float = 0.5) -> np.ndarray:
    """[n] fp32"""
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_wav(file: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """16 bits; [n] or [n, channels]."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file


def speech_rows(folder: Path, num_rows: int = 24) -> Path:
    """A JSONL of tones and their texts: a high tone is "paris", a low one "seven boxes". No two tones are equal."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(num_rows):
        write_wav(folder / "clips" / f"{i}.wav", tone((300 if i % 2 else 2400) + 9 * i, 0.3 + 0.02 * (i % 32)))
        rows.append(
            {"audio": f"clips/{i}.wav", "text": f"{'seven boxes' if i % 2 else 'paris'} {'fox ' * (i % 3)}".strip()}
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return folder / "rows.jsonl"
