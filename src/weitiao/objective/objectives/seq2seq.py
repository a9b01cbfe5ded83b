"""Sequence to sequence: generate a target from a source, with an encoder-decoder model (T5, BART, Marian); or transcribe
speech (Whisper).

Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks", arXiv 1409.3215, eq. 1, with teacher forcing
(each token is predicted from the right ones before it):

    loss = - sum over the target's tokens of log p(y_t | source, y_<t)

    the 3rd of May 2024 </s>   <start> 2 0 2 4 - 0 5 - 0 3
            context                   target, and </s>

In a row, audio takes the positions of the encoder's hidden states (AUDIO_PLACEHOLDER). The decoder's prompt (Radford et
al. 2022, arXiv 2212.04356, sec. 2.3) is context:

    . . . . . . . .   <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>  Good  morning </s>
        audio                               context                                       target

Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, sec. 7), with a vocabulary of V tokens:

    (1 - e) (- log p(y_t)) + e mean over the V tokens of - log p
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, INPUT_FEATURES, AnnotatedRow, Batch, Row, take_tokens
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import AudioText, Example, SourceTarget
from weitiao.core.generation import decoded, generate
from weitiao.core.messages import Message
from weitiao.core.objective import LikelihoodObjective, Preview
from weitiao.core.processor import FeatureExtractor, Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.preview import preview_lost

MIN_ROOM = 128  # tokens of an answer, however short the targets are
ANSWERS_AT_ONCE = 32  # that are generated, beams included
ROUNDING = 0.01  # seconds of one column of features: what resampling may add


class Seq2Seq(LikelihoodObjective):
    """Generate a target from a source text, or transcribe speech; for encoder-decoder models."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=SourceTarget,
        needs_encoder_decoder=True,
        has_predict=True,
        has_log_probs=True,
        overlong="error",
        overlong_reason=Message("a truncated source may lose what the target says"),
        metrics=("loss", "exact_match", "rouge_l"),
        optional_metrics=(
            *("rouge_1", "rouge_2", "bleu", "chrf", "wer", "cer", "perplexity", "bits_per_byte"),
            *("distinct_1", "distinct_2", "repetition", "answer_length", "json_valid", "json_schema_valid"),
            *("code_pass", "code_compiles"),
        ),
    )

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """This share of each target is spread over the whole vocabulary."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of beam search when generating; 1 is greedy."""
    max_new_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Maximum tokens of a generated answer; auto: that of the longest target, at least 128."""
    language: str | None = None
    """The spoken language (en, zh), for a multilingual speech model."""
    source_language: str | None = None
    """The source's language code as the base writes it (en_XX, eng_Latn, en), for mBART, M2M-100 and NLLB."""
    target_language: str | None = None
    """The target's language code; for a Marian model of several target languages too (fr)."""

    def metrics_for(self, examples: Sequence[Example]) -> tuple[str, ...]:
        return ("loss", "wer", "cer") if examples and isinstance(examples[0], AudioText) else self.traits.metrics

    def with_room(self, longest: int) -> "Seq2Seq":
        room = max(MIN_ROOM, longest) if self.max_new_tokens == "auto" else self.max_new_tokens
        return self.model_copy(update={"max_new_tokens": room})

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: SourceTarget, processor: Processor) -> list[Row]:
        """The source, then the decoder's input; its labels are the target."""
        extractor = _feature_extractor(example, processor)
        if isinstance(example, AudioText) and extractor is not None:
            row, prompt = _audio_row(example, extractor), extractor.decoder_prompt_ids(self.language)
            target = [*processor.encode_transcript(example.target), processor.eos_id]
            labels = [*[IGNORE] * (len(row["input_ids"]) + len(prompt) - 1), *target]
            ids = [*row["input_ids"], *prompt, *target[:-1]]
            return [AnnotatedRow(**{**row, "input_ids": ids, "labels": labels})]
        languages = self.source_language, self.target_language
        source, target = processor.source(example.text, *languages), processor.target(example.target, *languages)
        ids = [*source, target.start, *target.ids[:-1]]
        return [Row(input_ids=ids, labels=[*[IGNORE] * len(source), *target.ids])]

    def encode_input(self, example: SourceTarget, processor: Processor) -> Row:
        extractor = _feature_extractor(example, processor)
        if isinstance(example, AudioText) and extractor is not None:
            return _audio_row(example, extractor)
        ids = processor.source(example.text, self.source_language, self.target_language)
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def num_positions(self, row: Row) -> int:
        """The longer of source and target; of audio the target, as the encoder's length is fixed."""
        num_source = _num_source(row)
        num_target = len(row["input_ids"]) - num_source
        return num_target if _is_audio(row) else max(num_source, num_target)

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The ends of source and target go; the source's last token, which ends every text, stays."""
        num_source, length = _num_source(row), len(row["input_ids"])
        if num_source <= max_length or _is_audio(row):
            source = list(range(num_source))
        else:
            source = [*range(max_length - 1), num_source - 1]
        positions = [*source, *range(num_source, min(num_source + max_length, length))]
        lost = sorted({*range(length)} - {*positions})
        return take_tokens(row, positions), [int(row["input_ids"][t]) for t in lost]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The source, then the target."""
        source = [int(x) for x in row["input_ids"][: _num_source(row)]]
        target = [int(x) for x in row["labels"] if x != IGNORE]
        audio = row.get("audio")
        source_text = f"[{Path(audio.file).name}]" if audio else processor.decode(source, skip_special_tokens=False)
        return [
            ("context", source_text),
            *preview_lost(lost, processor),
            ("context", " → "),
            ("target", processor.decode(target, skip_special_tokens=False)),
        ]

    def generation_settings(self, processor: Processor) -> dict[str, Any]:
        """Where the decoder starts, in the target's language; the language that a speech model hears."""
        if processor.feature_extractor is not None:
            return {} if self.language is None else {"language": self.language, "task": "transcribe"}
        if self.target_language is None:
            return {}
        target = processor.target("a", self.source_language, self.target_language)
        return {"decoder_start_token_id": target.start, "forced_bos_token_id": target.language}

    # -- loss ---------------------------------------------------------------------------------------------------------

    def token_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[N]: the loss of every supervised token."""
        if not self.label_smoothing:
            return super().token_losses(model, batch)
        log_probs, targets = self.log_probs(model, batch), batch.labels[batch.labels != IGNORE]
        right = log_probs.gather(1, targets[:, None])[:, 0]
        return -(1 - self.label_smoothing) * right - self.label_smoothing * log_probs.mean(1)

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[str]:
        """The text generated from each row's source."""
        input_features, extractor = batch.more.get(INPUT_FEATURES), model.processor.feature_extractor
        if input_features is not None and extractor is not None:
            prompts = [extractor.decoder_prompt_ids(self.language)] * len(input_features)
        else:
            prompts = [list(row["input_ids"][: _num_source(row)]) for row in batch.rows]
        answers = generate(
            model,
            prompts,
            MIN_ROOM if self.max_new_tokens == "auto" else self.max_new_tokens,
            batch_size=ANSWERS_AT_ONCE // self.num_beams or 1,
            num_beams=self.num_beams,
            input_features=input_features,
        )
        return [decoded(model, answer) for answer in answers]

    def answer(self, prediction: str) -> str:
        return prediction


def _audio_row(example: AudioText, extractor: FeatureExtractor) -> AnnotatedRow:
    """The encoder's side of a row: placeholders for its hidden states."""
    if example.seconds > extractor.seconds + ROUNDING:
        raise InvalidValue(
            "{file} is {seconds:.1f} s long, but the model takes {limit:g} s: split it, with a transcript of each part",
            file=example.text,
            seconds=example.seconds,
            limit=extractor.seconds,
        )
    size = extractor.num_positions
    features = partial(extractor.features, example.audio)
    return AnnotatedRow(
        input_ids=[AUDIO_PLACEHOLDER] * size, labels=[IGNORE] * size, audio=example.audio, input_features=features
    )


def _is_audio(row: Row) -> bool:
    """Whether the source is audio."""
    return len(row["input_ids"]) > 0 and int(row["input_ids"][0]) == AUDIO_PLACEHOLDER


def _num_source(row: Row) -> int:
    """How many positions the encoder reads."""
    if _is_audio(row):
        return int((np.asarray(row["input_ids"]) == AUDIO_PLACEHOLDER).sum())
    return next((t for t, x in enumerate(row["labels"]) if x != IGNORE), len(row["labels"]))


def _feature_extractor(example: SourceTarget, processor: Processor) -> FeatureExtractor | None:
    """The base's feature extractor; None: base and row are text.

    Raises:
        DataError: one is text and the other is audio.
    """
    if isinstance(example, AudioText) and processor.feature_extractor is None:
        raise DataError(
            "data: these rows are audio, but the base is a text model. Use a speech model (package:whisper-tiny.en), or "
            "name the text columns: columns: {source: ..., target: ...}"
        )
    if processor.feature_extractor is not None and not isinstance(example, AudioText):
        raise DataError(
            "data: these rows are text, but the base is a speech model. Name the columns with an audio file and its "
            "transcript: columns: {audio: ..., text: ...}"
        )
    return processor.feature_extractor
