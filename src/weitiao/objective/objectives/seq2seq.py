"""Sequence to sequence: read a text, write what is to be made of it, with a model of two halves (T5, BART, Marian); or
hear speech and write what is said (Whisper).

Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks", arXiv 1409.3215, eq. 1; teacher forcing: each
token of the target is learnt behind the right ones before it, not behind what the model would have written:

    loss = - sum over the target's tokens of log p(y_t | source, y_<t)

    the 3rd of May 2024 </s>   <start> 2 0 2 4 - 0 5 - 0 3
              read                     learnt, and </s>

A sound stands in a row as the places of the encoder's hidden states (HEARD); what the decoder is told first (Radford et
al. 2022, arXiv 2212.04356, sec. 2.3) is read and not learnt:

    . . . . . . . .   <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>  Good  morning </s>
        heard                            read                                          learnt

Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, sec. 7), of V words:

    (1 - e) (- log p(y_t)) + e mean over the V words of - log p
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, SOUND, AnnotatedRow, Batch, Row
from weitiao.core.errors import DataError
from weitiao.core.example import AudioText, Example, SourceTarget
from weitiao.core.generation import generate
from weitiao.core.objective import LikelihoodObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits


class Seq2Seq(LikelihoodObjective):
    """Read a text, or hear speech, and write what is to be made of it; for models with an encoder and a decoder."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=SourceTarget,
        needs_encoder_decoder=True,
        has_predict=True,
        has_log_probs=True,
        overlong="error",
        overlong_reason="a cut text may lose what the target says",
        metrics=("loss", "exact_match", "rouge_l"),
        optional_metrics=("bleu", "chrf", "wer", "cer", "perplexity"),
    )

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of each target that is spread evenly over all words."""
    num_beams: int = Field(default=1, ge=1)
    """Answers that are followed at once when it writes (beam search); 1 is greedy."""
    max_new_tokens: int = Field(default=128, ge=1)
    """An answer has at most so many tokens."""

    language: str | None = None
    """Which language is spoken (en, zh), for a base that hears several."""

    def metrics_for(self, examples: Sequence[Example]) -> tuple[str, ...]:
        return ("loss", "wer", "cer") if examples and isinstance(examples[0], AudioText) else self.traits.metrics

    def rows(self, example: SourceTarget, processor: Processor) -> list[Row]:
        _refuse(example, processor)
        if isinstance(example, AudioText):
            return [self._spoken(example, processor)]
        source, target = processor.text(example.text), processor.text(example.target)
        if target[-1] != processor.eos_id:
            target = [*target, processor.eos_id]
        begun = [processor.start_id if processor.start_id is not None else processor.eos_id, *target[:-1]]
        return [Row(input_ids=[*source, *begun], labels=[IGNORE] * len(source) + target)]

    def _spoken(self, example: AudioText, processor: Any) -> Row:
        begun, target = (
            processor.feature_extractor.decoder_prompt_ids(self.language),
            [*processor.encode_transcript(example.target), processor.eos_id],
        )
        row = self._heard(example, processor)
        learnt = [*[IGNORE] * (len(row["input_ids"]) + len(begun) - 1), *target]
        return AnnotatedRow(**{**row, "input_ids": [*row["input_ids"], *begun, *target[:-1]], "labels": learnt})

    def _heard(self, example: AudioText, processor: Any) -> AnnotatedRow:
        """The encoder's half alone."""
        feature_extractor = processor.feature_extractor
        if example.seconds > feature_extractor.seconds + COLUMN:
            words = f"the sound in {example.text} is {example.seconds:.1f} s long, and the base hears {feature_extractor.seconds:g} s"
            raise ValueError(f"{words}: cut it into pieces with what is said in each")
        places, input_features = (
            [AUDIO_PLACEHOLDER] * feature_extractor.num_positions,
            partial(feature_extractor.features, example.audio),
        )
        return AnnotatedRow(
            input_ids=places,
            labels=[IGNORE] * feature_extractor.num_positions,
            sound=example.audio,
            input_features=input_features,
        )

    def encode_input(self, example: SourceTarget, processor: Processor) -> Row:
        _refuse(example, processor)
        if isinstance(example, AudioText):
            return self._heard(example, processor)
        ids = processor.text(example.text)
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def num_positions(self, row: Row) -> int:
        """The longer half; of speech the decoder's, for a sound always has its places."""
        source = _source(row)
        written = len(row["input_ids"]) - source
        return written if _is_heard(row) else max(source, written)

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The ends of both halves go; the source's last token, which ends every text, stays."""
        ids, labels, many = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]], _source(row)
        whole = many <= max_length or _is_heard(row)
        source = ids[:many] if whole else [*ids[: max_length - 1], ids[many - 1]]
        end = many + max_length
        lost = [] if whole else ids[max_length - 1 : many - 1]
        kept = {"input_ids": source + ids[many:end], "labels": [IGNORE] * len(source) + labels[many:end]}
        return {**row, **kept}, [*lost, *ids[end:]]  # pyright: ignore[reportReturnType]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        many, target = _source(row), [int(x) for x in row["labels"] if x != IGNORE]
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        source = processor.decode([int(x) for x in row["input_ids"][:many]], skip_special_tokens=False)
        source = f"[{Path(row['sound'].file).name}]" if "sound" in row else source
        return [
            ("context", source),
            *gone,
            ("context", " → "),
            ("target", processor.decode(target, skip_special_tokens=False)),
        ]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def token_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[N]: of every learnt token."""
        if not self.label_smoothing:
            return -model.logprobs(batch)
        chosen, targets = self.log_probs(model, batch), batch.labels[batch.labels != IGNORE]
        right = chosen.gather(1, targets[:, None])[:, 0]
        return -(1 - self.label_smoothing) * right - self.label_smoothing * chosen.mean(1)

    # -- what it writes -----------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[str]:
        """What is written of each row's source."""
        input_features, feature_extractor = batch.more.get(SOUND), model.processor.feature_extractor
        if input_features is not None and feature_extractor is not None:
            sources = [feature_extractor.decoder_prompt_ids(self.language)] * len(input_features)
        else:
            sources = [list(row["input_ids"][: _source(row)]) for row in batch.rows]
        many = TOGETHER // self.num_beams or 1
        written = generate(
            model, sources, self.max_new_tokens, batch_size=many, num_beams=self.num_beams, input_features=input_features
        )
        return [model.processor.decode(ids).strip() for ids in written]


TOGETHER = 32  # texts that are written at once
COLUMN = 0.01  # seconds of a column of features: what another rate's rounding may add


def _is_heard(row: Row) -> bool:
    """Whether it begins with a sound."""
    return len(row["input_ids"]) > 0 and int(row["input_ids"][0]) == AUDIO_PLACEHOLDER


def _source(row: Row) -> int:
    """How many tokens the encoder reads, or how many places it hears."""
    if _is_heard(row):
        return sum(int(x) == AUDIO_PLACEHOLDER for x in row["input_ids"])
    return next((t for t, x in enumerate(row["labels"]) if x != IGNORE), len(row["labels"]))


def _refuse(example: SourceTarget, processor: Processor) -> None:
    """A base that reads takes texts, one that hears takes sound.

    Raises:
        DataError: they do not go together.
    """
    if isinstance(example, AudioText) and processor.feature_extractor is None:
        raise DataError(
            "data: these rows are sound, and the base reads text. Take one that hears (package:whisper-tiny.en), or say "
            "which columns are text: columns: {source: ..., target: ...}."
        )
    if processor.feature_extractor is not None and not isinstance(example, AudioText):
        words = "the base hears sound, and these rows are text. Give columns audio (a sound file) and text"
        raise DataError(f"data: {words}, or say which they are: columns: {{audio: ..., text: ...}}.")
