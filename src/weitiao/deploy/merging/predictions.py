"""Compare what a written model predicts with what the tuned one does, on rows of the Run: labels, spans, numbers, vectors.

outputs of a head [T, C]   --pooling-->  [C]  --softmax, sigmoid-->  probabilities  -->  the label
                           --softmax-->  [T, C]                                     -->  a tag, a word, a span
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
)

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.score import Score, proportion

HEAD_CLASSES: dict[str, Any] = {
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
    "scores": AutoModel,
    "pair_scores": AutoModel,
    "embedding": AutoModel,
}
BARS = {torch.float32: (1.0, 1e-4), torch.bfloat16: (0.99, None), torch.float16: (0.995, None)}
"""By what is stored: the least share of equal predictions, the largest difference of what is predicted."""


@dataclass(frozen=True)
class PredictionReport:
    """Predictions of a written model beside those of the tuned one."""

    folder: str
    dtype: torch.dtype
    """What it is stored in."""
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

    @property
    def lines(self) -> list[Message]:
        return [self.message]

    @property
    def passed(self) -> bool:
        agreement, difference = BARS.get(self.dtype, (0.0, None))
        too_far = difference is not None and not self.max_difference <= difference
        return not too_far and self.agreement.high >= agreement

    def as_json(self) -> dict[str, Any]:
        return {
            "form": self.folder,
            "passed": self.passed,
            "rows": self.rows,
            "agreement": self.agreement.as_json(),
            "max_difference": self.max_difference,
        }

    def check(self) -> None:
        """Refuse what is not the tuned model.

        Raises:
            ModelError: naming the figure.
        """
        if not self.passed:
            raise ModelError(
                "the model in {folder} predicts otherwise than the tuned one: {figures}. Do not use it.",
                folder=self.folder,
                figures=self.message,
            )


def compare_predictions(
    form: PlainForm, expected: Sequence[Tensor], actual: Sequence[Tensor], folder: Path, dtype: torch.dtype
) -> PredictionReport:
    """Compare the outputs [1, T, C] of a head for each row.

    Args:
        folder: of the written model.
        dtype: that it is stored in.

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
    return PredictionReport(str(folder), dtype, len(expected), proportion("agreement", same, count), largest)


class PlainFolder:
    """A written folder, opened by plain transformers with the head that is in it, in fp32."""

    def __init__(self, folder: Path, form: PlainForm) -> None:
        """
        Raises:
            ModelError: it is no such model.
        """
        self.form = form
        try:
            options: Any = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
            self.model = HEAD_CLASSES[form.task].from_pretrained(folder, **options).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelError("{folder} cannot be opened: {reason}", folder=folder, reason=str(error)[:300]) from None
        dense = folder / "2_Dense" / "model.safetensors"
        tensors = load_file(dense) if form.pooling is not None and dense.is_file() else {}
        self.weight, self.bias = (x if x is None else x.float() for x in map(tensors.get, ("linear.weight", "linear.bias")))

    @torch.no_grad()
    def outputs(self, ids: Tensor) -> Tensor:
        """[1, T, C] of the head for the ids [1, T]."""
        return outputs_of(self.model(input_ids=ids.to(self.model.device)), self.form, self.weight, self.bias)


def outputs_of(out: Any, form: PlainForm, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """[1, T, C] of what transformers' class gives; of pooled forms, the linear layer on each hidden state."""
    if form.task == "question_answering":
        return torch.stack([out.start_logits, out.end_logits], -1).cpu()
    if form.pooling is None:
        return out.logits.cpu()
    hidden = out.last_hidden_state
    return (hidden if weight is None else torch.nn.functional.linear(hidden, weight, bias)).cpu()


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
