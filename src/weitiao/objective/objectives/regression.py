"""Regression: one number of a text or of two, or several.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.1 (STS-B); Huber 1964, "Robust Estimation of a Location
Parameter", Ann. Math. Statist. 35(1):

    z = W dropout(pooled) + b                                          [B, K]
    t = (y - mean) / deviation        of the training rows             [B, K]

    mse      loss of a row = mean over its numbers of (z - t)^2
    huber                    (z - t)^2 / 2 where |z - t| <= delta, else delta (|z - t| - delta / 2)

    encoder   [CLS] a man eats [SEP] someone is eating [SEP]      pooled: the mean of all hidden states, or the first one
    decoder   a man eats \\n someone is eating <end>               pooled: the last hidden state

The head learns standardised numbers, so that one learning rate serves prices and shares alike; mean and deviation are kept
with the run, and `predict` gives numbers in the data's own units. The loss is in standardised units: with mse, 1 is what
one has who always says the mean.

A label is a whole number, so t stands there as the 32 bits of its fp32, on the row's last tokens. IGNORE's bits are no
finite number's, so the two are never mixed up.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.errors import DataError
from weitiao.core.example import TextScore
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import Pooling, TextRow, cut_end, labelled_at_end, pooled, text_row

HEAD = "numbers"


class Regression(HeadObjective):
    """Tell a number of a text or of two texts, or several numbers."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextScore,
        generative=False,
        overlong="truncate",
        overlong_reason="the beginning of a long text mostly says what it is; of two, the longer is cut first",
        metrics=("loss", "pearson", "spearman", "mse", "mae"),
    )

    criterion: Literal["mse", "huber"] = "mse"
    """Squared error, or Huber's, which far outliers pull less."""
    delta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Where Huber's loss turns from a square into a line, in standard stds."""
    pooling: Pooling = "auto"
    """What stands for the text: the mean of the hidden states, the first, or the last; auto: encoders mean, others last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On what is pooled, while training."""
    means: tuple[float, ...] = ()
    """Of each number; none: of the training data."""
    stds: tuple[float, ...] = ()
    """Standard deviation of each number; none: of the training data."""

    def fit(self, examples: Sequence[TextScore]) -> "Regression":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective that knows how many numbers there are, their means and standard stds."""
        if bool(self.means) != bool(self.stds) or len(self.means) != len(self.stds):
            raise DataError("objective: give as many means as stds, or neither.")
        if self.means:
            many, means, stds = len(self.means), self.means, self.stds
        else:
            many = Counter(len(x.values) for x in examples).most_common(1)[0][0]
            numbers = np.array([x.values for x in examples if len(x.values) == many], np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # said below, in words
                means, stds = (tuple(map(float, x)) for x in (numbers.mean(0), numbers.std(0)))
        for i in range(many):
            which = f"number {i + 1} of {many}" if many > 1 else "the number"
            if not (math.isfinite(means[i]) and math.isfinite(stds[i])):
                raise DataError(f"data: {which} is too large to be reckoned with; give it in another unit.")
            if stds[i] <= 1e-12 * abs(means[i]):
                raise DataError(f"data: {which} is {means[i]:g} in every row: there is nothing to learn.")
        return self.model_copy(update={"means": means, "stds": stds})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer; small weights, so that the first answers are about the mean."""
        head = nn.Linear(width, len(self.means))
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return {HEAD: head}

    def rows(self, example: TextScore, processor: Processor) -> list[Row]:
        """The text or the two, with the standardised numbers as the labels of the last tokens."""
        many = len(self.means)
        if len(example.values) != many:
            raise ValueError(f"{len(example.values)} numbers where other rows have {many}")
        standard = [(y - m) / d for y, m, d in zip(example.values, self.means, self.stds)]
        return [
            labelled_at_end(self.encode_input(example, processor), np.array(standard, np.float32).view(np.int32).tolist())
        ]

    def encode_input(self, example: TextScore, processor: Processor) -> TextRow:
        return text_row(processor, example.text, example.other)

    def cut(self, row: TextRow, max_length: int) -> tuple[Row, list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The beginnings stay, and the last token, which ends every row."""
        return cut_end(row, max_length)

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The text, and behind it the numbers that are learnt, in their own units."""
        held = np.array([x for x in row["labels"] if x != IGNORE], np.int32).view(np.float32)
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        text = processor.decode([int(x) for x in row["input_ids"]], skip_special_tokens=False)
        return [("context", text), *gone, ("target", f" → {self.answer(self.in_units(held.tolist()))}")]

    def in_units(self, standard: Sequence[float]) -> tuple[float, ...]:
        """Standardised numbers in the data's own units."""
        return tuple(z * d + m for z, m, d in zip(standard, self.means, self.stds))

    # -- the loss -----------------------------------------------------------------------------------------------------

    def scores(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B, K] fp32, standardised."""
        return model.heads[HEAD](F.dropout(pooled(model, batch, self.pooling), self.dropout, model.training))

    def targets(self, batch: Batch) -> Tensor:
        """[B, K] fp32: the standardised numbers to be told."""
        return batch.labels[batch.labels != IGNORE].to(torch.int32).view(torch.float32).view(-1, len(self.means))

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        z, held = self.scores(model, batch), self.targets(batch)
        if self.criterion == "huber":
            return F.huber_loss(z, held, reduction="none", delta=self.delta).mean(1)
        return F.mse_loss(z, held, reduction="none").mean(1)

    def predict(self, model: TrainableModel, batch: Batch) -> list[tuple[float, ...]]:
        """The numbers in their own units, a segment."""
        return [self.in_units(row) for row in self.scores(model, batch).tolist()]

    def to_record(self, said: tuple[float, ...]) -> dict[str, Any]:
        """Numbers, not words; a list where there are several."""
        return {"predicted": said[0] if len(said) == 1 else list(said)}

    def answer(self, said: tuple[float, ...]) -> str:
        return ", ".join(f"{x:g}" for x in said)

    def metric_pair(self, said: tuple[float, ...], example: TextScore) -> tuple[Any, Any]:
        return said, example.values
