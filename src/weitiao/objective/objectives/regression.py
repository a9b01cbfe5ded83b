"""Regression: one number for a text or a pair of texts, or several numbers.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.1 (STS-B); Huber 1964, "Robust Estimation of a Location
Parameter", Ann. Math. Statist. 35(1):

    z = W dropout(pooled) + b                                          [B, K]
    t = (y - mean) / std              of the training rows             [B, K]

    mse      loss of a row = mean over its numbers of (z - t)^2
    huber                    (z - t)^2 / 2 where |z - t| <= delta, else delta (|z - t| - delta / 2)

    encoder   [CLS] a man eats [SEP] someone is eating [SEP]      pooled: the mean of all hidden states, or the first
    decoder   a man eats \\n someone is eating <end>               pooled: the last hidden state

The head predicts standardized numbers, so one learning rate fits prices and shares alike. Means and standard deviations
are stored with the run, and `predict` returns numbers in the data's units. The loss is in standardized units: with mse,
always predicting the mean gives 1.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import AnnotatedRow, Batch, Row
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import TextScore
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import PooledObjective, TextRow, linear_head, pooling_of, text_row

HEAD = "numbers"
VALUES = "values"  # the target: standardized numbers [K]


class Regression(PooledObjective):
    """Predict a number from a text or a pair of texts, or several numbers."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextScore,
        generative=False,
        overlong="truncate",
        overlong_reason=Message("the beginning of a text usually suffices; of a pair the longer text is cut first"),
        metrics=("loss", "pearson", "spearman", "mse", "mae"),
    )

    criterion: Literal["mse", "huber"] = "mse"
    """Squared error, or the Huber loss, on which outliers have less influence."""
    delta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Where the Huber loss turns from quadratic to linear, in standard deviations."""
    means: tuple[float, ...] = ()
    """Mean of each number; default: of the training data."""
    stds: tuple[float, ...] = ()
    """Standard deviation of each number; default: of the training data."""

    def fit(self, examples: Sequence[TextScore]) -> "Regression":
        """The objective with the number of outputs, their means and standard deviations."""
        if len(self.means) != len(self.stds):
            raise DataError("objective: give as many means as stds, or neither")
        means, stds = (self.means, self.stds) if self.means else _statistics(examples)
        for number, (mean, std) in enumerate(zip(means, stds), 1):
            if not (math.isfinite(mean) and math.isfinite(std)):
                raise DataError("data: number {number} is too large to compute with; use another unit", number=number)
            if std <= 1e-12 * abs(mean):
                raise DataError(
                    "data: number {number} is {mean:g} in every row, so there is nothing to train on",
                    number=number,
                    mean=mean,
                )
        return self.model_copy(update={"means": means, "stds": stds})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer; with small weights the first predictions are close to the mean."""
        return {HEAD: linear_head(width, len(self.means))}

    def plain_form(self, kind: str) -> PlainForm:
        """Numbers in the data's units."""
        names = tuple(f"value_{i}" for i in range(1, len(self.means) + 1)) if len(self.means) > 1 else ("value",)
        pooling = pooling_of(self.pooling, kind)
        return PlainForm("scores", HEAD, names, "regression", pooling, scale=self.stds, shift=self.means)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TextScore, processor: Processor) -> list[Row]:
        """The text or the pair; the target is the standardized numbers."""
        if len(example.values) != len(self.means):
            raise InvalidValue(
                "the row has {num} numbers, but other rows have {usual}", num=len(example.values), usual=len(self.means)
            )
        values = [(y - mean) / std for y, mean, std in zip(example.values, self.means, self.stds)]
        row = self.encode_input(example, processor)
        return [AnnotatedRow(**{**row, "targets": {VALUES: np.array(values, np.float32)}})]

    def encode_input(self, example: TextScore, processor: Processor) -> TextRow:
        return text_row(processor, example.text, example.other)

    def _describe_target(self, row: Row) -> str:
        return self.answer(self.in_units([float(x) for x in row.get("targets", {})[VALUES]]))

    def in_units(self, standardized: Sequence[float]) -> tuple[float, ...]:
        """Standardized numbers in the data's units."""
        return tuple(z * std + mean for z, mean, std in zip(standardized, self.means, self.stds))

    # -- loss ---------------------------------------------------------------------------------------------------------

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        z, target = self._scores(model, batch, HEAD), batch.targets[VALUES]  # [B, K]
        if self.criterion == "huber":
            return F.huber_loss(z, target, reduction="none", delta=self.delta).mean(1)
        return F.mse_loss(z, target, reduction="none").mean(1)

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[tuple[float, ...]]:
        """The numbers of each segment, in the data's units."""
        return [self.in_units(row) for row in self._scores(model, batch, HEAD).tolist()]

    def to_record(self, prediction: tuple[float, ...]) -> dict[str, Any]:
        """Numbers rather than text; a list where there are several."""
        return {"predicted": prediction[0] if len(prediction) == 1 else list(prediction)}

    def answer(self, prediction: tuple[float, ...]) -> str:
        return ", ".join(f"{x:g}" for x in prediction)

    def metric_pair(self, prediction: tuple[float, ...], example: TextScore) -> tuple[Any, Any]:
        return prediction, example.values


def _statistics(examples: Sequence[TextScore]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations of the numbers, over rows that have as many as most rows."""
    size = Counter(len(x.values) for x in examples).most_common(1)[0][0]
    values = np.array([x.values for x in examples if len(x.values) == size], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        means, stds = values.mean(0), values.std(0)
    return tuple(map(float, means)), tuple(map(float, stds))
