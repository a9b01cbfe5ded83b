"""A text and what is to be made of it.

{"source": ..., "target": ...}      also input, document, article, text; output, summary, highlights, translation
{"audio": ..., "text": ...}         a sound file, by its path from the data file's folder, and what is said in it
"""

from typing import Any

from weitiao.core.example import AudioText, SourceTarget
from weitiao.data.audio import load_audio
from weitiao.data.columns import TEXTS, ColumnMapping, first_of, string, text_of

MAKES = SourceTarget
PURPOSE = "seq2seq"
TARGETS = ("source", "target", "audio", "text")
LACKING = "no text and what is to be made of it found"
NEEDS = "{source: ..., target: ...}, or of speech {audio: ..., text: ...}"
INPUTS = ("text",)

FIRST = ("source", "input", "document", "article", "text", "src")
SECOND = ("target", "output", "summary", "highlights", "translation", "tgt")
AUDIO = ("audio", "sound", "audio_path", "wav")
SAID = ("text", "sentence", "transcript", "transcription", "target")


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    sound, said = first_of(AUDIO, seen), first_of(SAID, seen)
    if sound and said:
        return [_spoken(sound, said)]
    source, target = first_of(FIRST, seen), first_of(SECOND, seen)
    return [_rewritten(source, target)] if source and target else []


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    said = columns.get("text") or columns.get("target")
    if "audio" in columns:
        return _spoken(columns["audio"], said) if said else None
    return _rewritten(columns["source"], columns["target"]) if {"source", "target"} <= columns.keys() else None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """A text alone, of which something is to be made; or a sound."""
    sound = columns.get("audio") or (None if columns else first_of(AUDIO, seen))
    if sound:
        return _spoken(sound, None) if sound in seen else None
    asked = columns.get("text") or columns.get("source")
    key = first_of((*FIRST, *TEXTS), seen) if asked is None else first_of((asked,), seen)
    return (
        ColumnMapping(f"{key} is read", SourceTarget, lambda record: SourceTarget(text_of(record, key), ""))
        if key
        else None
    )


def _rewritten(source: str, target: str) -> ColumnMapping:
    def make(record: dict[str, Any]) -> SourceTarget:
        return SourceTarget(text_of(record, source), text_of(record, target))

    return ColumnMapping(f"{source} -> {target}", SourceTarget, make)


def _spoken(sound: str, said: str | None) -> ColumnMapping:
    """Of speech; `said` is None where nobody knows what is said."""

    def make(record: dict[str, Any]) -> AudioText:
        file = string(record, sound)
        if not file.strip():
            raise ValueError(f"column {sound!r} is empty: the row names no sound file")
        return AudioText(file, text_of(record, said) if said else "")

    return ColumnMapping(
        f"{sound} (a sound file) -> {said}" if said else f"{sound} is heard", SourceTarget, make, load_audio
    )
