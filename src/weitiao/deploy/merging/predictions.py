"""Compare what a written model predicts with what the tuned one does, on rows of the Run: labels, spans, numbers, vectors.

outputs of a head [T, C]   --pooling-->  [C]  --softmax, sigmoid-->  probabilities  -->  the label
                           --softmax-->  [T, C]                                     -->  a tag, a word, a span
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.score import Score, proportion

BARS = {torch.float32: (1.0, 1e-4), torch.bfloat16: (0.99, None), torch.float16: (0.995, None)}
"""By what is stored: the least share of equal predictions, the largest difference of what is predicted."""


@dataclass(frozen=True)
class PredictionReport:
    """Predictions of a written model beside those of the tuned one."""

    rows: int
    agreement: Score
    """Of the predicted labels, tags, words, starts and ends; of numbers and vectors, rows that are equal within 1e-3."""
    max_difference: float
    """Of probabilities; of numbers, relative to the largest; of vectors of length 1, of a coordinate."""

    @property
    def message(self) -> Message:
        return Message(
            "{agreement:.2%} of {n:,} predictions are the same [{low:.2%}, {high:.2%}], probabilities and numbers differ "
            "by at most {difference:.1e} ({rows:,} rows)",
            agreement=self.agreement.value,
            n=self.agreement.n,
            low=self.agreement.low,
            high=self.agreement.high,
            difference=self.max_difference,
            rows=self.rows,
        )

    def check(self, folder: object, dtype: torch.dtype) -> None:
        """Refuse what is not the tuned model.

        Raises:
            ModelError: naming the figure.
        """
        agreement, difference = BARS.get(dtype, (0.0, None))
        too_far = difference is not None and not self.max_difference <= difference
        if too_far or self.agreement.high < agreement:
            raise ModelError(
                "the model in {folder} predicts otherwise than the tuned one: {figures}. Do not use it.",
                folder=folder,
                figures=self.message,
            )


def compare_predictions(form: PlainForm, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> PredictionReport:
    """Compare the outputs [1, T, C] of a head for each row.

    Raises:
        ModelError: an output is NaN, or of another shape.
    """
    same = count = 0
    largest = 0.0
    scale = max((float(x.abs().max()) for x in expected), default=1.0) if is_number(form) else 1.0
    for x, y in zip(expected, actual, strict=True):
        if x.shape != y.shape or not bool(torch.isfinite(y).all()):
            raise ModelError("the model gives other outputs than the tuned one: NaN, or of another shape.")
        a, b = (predicted(form, z[0].double()) for z in (x, y))
        difference = float((a - b).abs().max()) / scale
        largest = max(largest, difference)
        if is_number(form) or form.task == "embedding":
            same, count = same + (difference <= 1e-3), count + 1
        else:
            decided_a, decided_b = decisions(form, a), decisions(form, b)
            same, count = same + int((decided_a == decided_b).sum()), count + decided_a.numel()
    return PredictionReport(len(expected), proportion("agreement", same, count), largest)


def is_number(form: PlainForm) -> bool:
    """Whether the outputs are numbers in the data's units."""
    return form.pooling is not None and form.task != "embedding" and form.activation == "Identity"


def predicted(form: PlainForm, outputs: Tensor) -> Tensor:
    """Probabilities, numbers or a vector from the outputs [T, C] of a row: [C], or [T, C] where each token has its own."""
    if form.pooling is None:
        return outputs.softmax(0 if form.task == "question_answering" else -1)
    pooled = {"mean": outputs.mean(0), "first": outputs[0], "last": outputs[-1]}[form.pooling]
    if form.task == "embedding":
        return torch.nn.functional.normalize(pooled, dim=-1)
    return {"Identity": pooled, "Softmax": pooled.softmax(-1), "Sigmoid": pooled.sigmoid()}[form.activation]


def decisions(form: PlainForm, predicted: Tensor) -> Tensor:
    """The predicted labels: one, those that apply, one for each token, or a start and an end."""
    if form.pooling is None:
        return predicted.argmax(0 if form.task == "question_answering" else -1)
    return predicted > 0.5 if form.activation == "Sigmoid" else predicted.argmax(-1, keepdim=True)
