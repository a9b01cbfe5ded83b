"""Encodes a text or a pair of texts as one row and pools it to one vector; for sequence-level objectives.

one text     [CLS] the mail says [SEP]                   a pair     [CLS] the mail says [SEP] the other says [SEP]
decoder      the mail says <end>                                    the mail says \\n the other says <end>

mean    the mean of all hidden states (encoders: Reimers & Gurevych 2019, arXiv 1908.10084, sec. 3)
first   the first (BERT's [CLS]: Devlin et al. 2019, arXiv 1810.04805, sec. 4.1)
last    the last, the only one that has attended to everything (decoders: Radford et al. 2018, sec. 3.2)
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Row, take_tokens
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.objective.preview import preview_with_target

Pooling = Literal["auto", "mean", "first", "last"]
HEAD_STD = 0.02  # of a new head's weights: small, so that no output is preferred at first


class TextRow(AnnotatedRow, total=False):
    """A row of a text or a pair."""

    second: int
    """The position at which the second text starts; absent: there is one text."""


class PooledObjective(HeadObjective):
    """Trains a linear head on one vector for the whole text, or for a pair of texts."""

    pooling: Pooling = "auto"
    """The vector that represents the text: mean of the hidden states, first or last; auto: mean for encoders, else last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the pooled vector, during training."""

    @abstractmethod
    def _describe_target(self, row: Row) -> str:
        """A row's target, as its preview shows it."""

    def num_targets(self, row: Row) -> int:
        """One: the whole text has one prediction."""
        return 1

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The beginnings stay, and the last token, which ends every row; of a pair the longer text is cut first."""
        return cut_texts(row, max_length)

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The text, then the target."""
        return preview_with_target(row["input_ids"], lost, self._describe_target(row), processor)

    def _scores(self, model: TrainableModel, batch: Batch, head: str) -> Tensor:
        """[B, C] fp32: the head's outputs."""
        return model.cache.get(head, batch, lambda: self._compute_scores(model, batch, head))

    def _compute_scores(self, model: TrainableModel, batch: Batch, head: str) -> Tensor:
        return model.heads[head](F.dropout(pooled(model, batch, self.pooling), self.dropout, model.training))


def linear_head(width: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A new linear head with small random weights and a zero bias."""
    head = nn.Linear(width, outputs, bias)
    nn.init.normal_(head.weight, std=HEAD_STD)
    if bias:
        nn.init.zeros_(head.bias)
    return head


def text_row(processor: Processor, text: str, other: str = "") -> TextRow:
    """A text or a pair with the special tokens around them; it ends with the end-of-text token and has no labels."""
    if not other:
        ids = processor.text(text)
        if not ids or ids[-1] != processor.eos_id:
            ids = [*ids, processor.eos_id]
        return TextRow(input_ids=ids, labels=[IGNORE] * len(ids))
    frame = processor.special_tokens
    start = [*frame.first, *processor.encode_with_offsets(text)[0], *frame.between]
    ids = [*start, *processor.encode_with_offsets(other)[0], *frame.last]
    return TextRow(input_ids=ids, labels=[IGNORE] * len(ids), second=len(start))


def cut_texts(row: Row, max_length: int) -> tuple[TextRow, list[int]]:
    """(the row with its texts cut at their ends, the token ids that are lost). The last token stays; of a pair the longer
    text is cut first."""
    last, second = len(row["input_ids"]) - 1, row.get("second")
    texts = [range(last)] if second is None else [range(second), range(second, last)]
    lengths = [len(text) for text in texts]
    for _ in range(last + 1 - max_length):
        lengths[lengths.index(max(lengths))] -= 1
    positions = [t for text, length in zip(texts, lengths) for t in text[:length]]
    lost = [int(row["input_ids"][t]) for text, length in zip(texts, lengths) for t in text[length:]]
    short = TextRow(**take_tokens(row, [*positions, last]))
    if second is not None:
        short["second"] = lengths[0]
    return short, lost


def pooling_of(pooling: Pooling, kind: str) -> Literal["mean", "first", "last"]:
    """auto: mean for encoders, else last."""
    if pooling == "auto":
        return "mean" if kind == "encoder" else "last"
    return pooling


def pooled(model: TrainableModel, batch: Batch, pooling: Pooling) -> Tensor:
    """[B, D] fp32: one vector per segment; auto: mean for encoders, else last."""
    pooling = pooling_of(pooling, model.architecture.kind)
    bounds = torch.tensor(batch.bounds, device=model.device)
    if pooling == "mean":
        return torch.segment_reduce(model.hidden(batch).float(), "mean", offsets=bounds, axis=0)
    return model.hidden(batch, bounds[:-1] if pooling == "first" else bounds[1:] - 1).float()
