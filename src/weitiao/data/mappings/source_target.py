"""A text and the text to generate from it, or speech and its transcript.

{"source": ..., "target": ...}      also input, document, article, text; output, summary, highlights, translation
{"audio": ..., "text": ...}         an audio file, its path relative to the data file's folder, and its transcript
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import AudioText, SourceTarget
from weitiao.core.messages import Message
from weitiao.data.audio import load_audio
from weitiao.data.column_names import AUDIO, OUTPUTS, SOURCES, TEXTS, TRANSCRIPTS, first_of
from weitiao.data.columns import ColumnMapping, columns_of, string, text_of, texts_of

EXAMPLE_TYPE = SourceTarget
OBJECTIVE = "seq2seq"
TARGETS = ("source", "target", "audio", "text")
NOT_FOUND = Message("no columns of a source text and its target text found")
COLUMNS = "{source: ..., target: ...}, or for speech {audio: ..., text: ...}"
INPUTS = ("text",)


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    audio, transcript = first_of(AUDIO, first_values), first_of(TRANSCRIPTS, first_values)
    if audio and transcript:
        return [_audio_text(audio, transcript)]
    source = first_of(SOURCES, first_values)
    target = first_of(OUTPUTS, [name for name in first_values if name != source])
    return [_source_target(source, target)] if source and target else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    transcript = columns.get("text") or columns.get("target")
    if "audio" in columns:
        return _audio_text(columns["audio"], transcript) if transcript else None
    return _source_target(columns["source"], columns["target"]) if {"source", "target"} <= columns.keys() else None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """A source text without its target, or speech without a transcript."""
    audio = columns.get("audio") or (None if columns else first_of(AUDIO, first_values))
    if audio:
        return _audio_text(audio, None) if audio in first_values else None
    requested = columns.get("text") or columns.get("source")
    key = first_of((requested,) if requested else (*SOURCES, *TEXTS), first_values)
    if not key:
        return None
    return ColumnMapping(key, SourceTarget, lambda record: SourceTarget(text_of(record, key), ""), reads=(key,))


def _source_target(source: str, target: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> SourceTarget:
        return SourceTarget(text_of(record, source), text_of(record, target))

    texts = texts_of(prompt=(source,), answer=(target,))
    return ColumnMapping(f"{source} -> {target}", SourceTarget, make, reads=(source, target), texts=texts)


def _audio_text(audio: str, transcript: str | None) -> ColumnMapping:
    """Speech and its transcript; None: there is no transcript yet."""

    def make(record: dict[str, Any]) -> AudioText:
        file = string(record, audio)
        if not file.strip():
            raise InvalidValue("column {column!r} is empty: the row names no audio file", column=audio)
        return AudioText(file, text_of(record, transcript) if transcript else "")

    description = f"{audio} -> {transcript}" if transcript else audio
    reads, texts = columns_of(audio, transcript), texts_of(answer=(transcript,))
    return ColumnMapping(description, SourceTarget, make, load_audio, reads, texts=texts)
