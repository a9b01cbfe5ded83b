"""Classification: the class of a text, or several of them.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.1; Radford et al. 2018 (GPT), sec. 3.2, for causal models:

    z = W dropout(pooled) + b                          [B, C]
    one class per text    loss = - w_y log softmax(z)_y                       divided by the sum of w_y
    multi-label           loss = mean over classes of binary cross-entropy    divided by the number of texts

    encoder   [CLS] the mail says ... [SEP]        pooled: the mean of all hidden states, or the first
    decoder   the mail says ... <end>              pooled: the last hidden state
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import AnnotatedRow, Batch, Row
from weitiao.core.class_names import folded
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import TextLabel
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.registry import nearest
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import CLASS_METRICS, PROBABILITY_METRICS, Traits
from weitiao.objective.pooling import PooledObjective, TextRow, linear_head, pooling_of, text_row
from weitiao.objective.thresholds import best_threshold

HEAD = "classes"
CLASS_ID, CLASSES = "class_id", "classes"  # the targets: the class's number; multi-label: 1 for each class that applies [C]
MAX_CLASSES = 1000  # more classes than this are probably a wrong column
THRESHOLD = 0.5
MIN_ROWS = 10  # validation rows of a class, from which it gets a threshold of its own


class Classification(PooledObjective):
    """Predict the class of a text, or several classes."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextLabel,
        generative=False,
        has_log_probs=True,
        overlong="truncate",
        overlong_reason=Message("the beginning of a text usually suffices to classify it"),
        metrics=("loss", "accuracy", "f1"),
        optional_metrics=(*CLASS_METRICS, *PROBABILITY_METRICS),
    )

    classes: tuple[str, ...] = ()
    """The classes, in the order of the scores; default: those of the training data."""
    multi_label: bool | Literal["auto"] = "auto"
    """A text may have several classes, or none; auto: if some training row does not have exactly one."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weight of each class in the loss; balanced: rows / (classes x rows of the class)."""
    threshold: float | dict[str, float] | Literal["validation"] = "validation"
    """Multi-label: the probability from which a class applies, for all classes or by class; validation: the threshold with
    the best F1 on the validation rows, chosen after training (until then 0.5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """This share of the target is spread over all classes (Szegedy et al. 2016, sec. 7)."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Focal loss: losses are multiplied by (1 - p)^gamma, so easy rows count less (Lin et al. 2017, eq. 4); 0: off."""

    @field_validator("threshold")
    @classmethod
    def _thresholds_are_probabilities(cls, threshold: Any) -> Any:
        if threshold == "validation":
            return threshold
        for value in threshold.values() if isinstance(threshold, dict) else (threshold,):
            if not 0 <= value <= 1:
                raise InvalidValue("a threshold is a probability from 0 to 1, or: validation; got {value:g}", value=value)
        return threshold

    def fit(self, examples: Sequence[TextLabel]) -> "Classification":
        """The objective with its classes and their weights."""
        counts = Counter(label for x in examples for label in x.labels)
        classes = self.classes or tuple(sorted(counts, key=_natural_order))
        auto = self.multi_label == "auto"
        multi_label = any(len(x.labels) != 1 for x in examples) if auto else bool(self.multi_label)
        self._check_classes(classes, len(examples), multi_label)
        weights = self.class_weights
        if weights == "balanced":
            weights = {c: round(sum(counts.values()) / (len(classes) * max(counts[c], 1)), 6) for c in classes}
        return self.model_copy(update={"classes": classes, "multi_label": multi_label, "class_weights": weights})

    def _check_classes(self, classes: Sequence[str], num_rows: int, multi_label: bool) -> None:
        if not classes:
            raise DataError("data: no row has a class")
        if len(classes) == 1 and not multi_label:
            raise DataError("data: every row has the class {name!r}, so there is nothing to train on", name=classes[0])
        if len(classes) > MAX_CLASSES or (num_rows >= 100 and len(classes) > num_rows / 2):
            raise DataError(
                "data: {num_classes:,} classes in {num_rows:,} rows ({classes} ...). Is that the right column? Name it "
                "with columns: {{text: ..., label: ...}}",
                num_classes=len(classes),
                num_rows=num_rows,
                classes=", ".join(repr(x[:30]) for x in classes[:3]),
            )
        for key, setting in (("class_weights", self.class_weights), ("threshold", self.threshold)):
            unknown = sorted(set(setting) - set(classes)) if isinstance(setting, dict) else []
            if unknown:
                raise DataError(
                    "objective.{key}: there is no class {name!r}.{hint} The classes are: {classes}",
                    key=key,
                    name=unknown[0],
                    hint=nearest(unknown[0], classes),
                    classes=", ".join(classes),
                )

    # -- heads --------------------------------------------------------------------------------------------------------

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer."""
        return {HEAD: linear_head(width, len(self.classes))}

    def plain_form(self, kind: str) -> PlainForm:
        """Scores of the classes."""
        multi_label = self.multi_label is True
        return PlainForm(
            "scores",
            HEAD,
            self.classes,
            "multi_label_classification" if multi_label else "single_label_classification",
            pooling_of(self.pooling, kind),
            "Sigmoid" if multi_label else "Softmax",
        )

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TextLabel, processor: Processor) -> list[Row]:
        """The text; the target is its class, or which classes apply."""
        unknown = [x for x in example.labels if x not in self.classes]
        if unknown:
            alike = [x for x in self.classes if folded(x) == folded(unknown[0])]
            raise InvalidValue(
                "the class {name!r} is not one of the training classes: {classes}{hint}",
                name=unknown[0],
                classes=", ".join(self.classes)[:200],
                hint=Message(" (it is {name!r} in another spelling: write it in that way)", name=alike[0]) if alike else "",
            )
        if not self.multi_label and len(example.labels) != 1:
            raise InvalidValue(
                "the row has {num} classes, but one is expected; set multi_label: true if several may apply",
                num=len(example.labels),
            )
        if self.multi_label:
            targets = {CLASSES: [int(c in example.labels) for c in self.classes]}
        else:
            targets = {CLASS_ID: self.classes.index(example.labels[0])}
        return [AnnotatedRow(**{**self.encode_input(example, processor), "targets": targets})]

    def encode_input(self, example: TextLabel, processor: Processor) -> TextRow:
        return text_row(processor, example.text)

    def _describe_target(self, row: Row) -> str:
        targets = row.get("targets", {})
        if CLASS_ID in targets:
            return self.classes[int(targets[CLASS_ID])]
        return ", ".join(c for c, applies in zip(self.classes, targets[CLASSES]) if applies) or "none"

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _targets(self, batch: Batch) -> Tensor:
        """[B, C] fp32: 1 for each class that applies."""
        if self.multi_label:
            return batch.targets[CLASSES].float()
        return F.one_hot(batch.targets[CLASS_ID], len(self.classes)).float()

    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: the weight of each row's class."""
        if self.multi_label or not isinstance(self.class_weights, dict):
            return super().row_counts(batch)
        return self._targets(batch) @ self._weights(batch.labels.device)

    def _weights(self, device: torch.device) -> Tensor:
        """[C]: the weight of each class."""
        weights = self.class_weights if isinstance(self.class_weights, dict) else {}
        return torch.tensor([weights.get(c, 1.0) for c in self.classes], device=device)

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row, times its weight."""
        z, targets = self._scores(model, batch, HEAD), self._targets(batch)
        if self.multi_label:
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(z, smooth, reduction="none")
            if self.focal_gamma:
                losses = losses * (1 - torch.where(targets > 0, z.sigmoid(), 1 - z.sigmoid())) ** self.focal_gamma
            return (losses * self._weights(z.device)).mean(1)
        losses = F.cross_entropy(z, targets.argmax(1), reduction="none", label_smoothing=self.label_smoothing)
        if self.focal_gamma:
            losses = losses * (1 - (z.softmax(1) * targets).sum(1)) ** self.focal_gamma
        return losses * self.row_counts(batch)

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B, C]; multi-label [B C, 2]: each class applies or not."""
        z = self._scores(model, batch, HEAD)
        return F.logsigmoid(torch.stack([z, -z], -1)).flatten(0, 1) if self.multi_label else z.log_softmax(-1)

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[dict[str, float]]:
        """The probability of every class, by segment."""
        z = self._scores(model, batch, HEAD)
        p = z.sigmoid() if self.multi_label else z.softmax(1)
        return [dict(zip(self.classes, row)) for row in p.tolist()]

    def calibrate(
        self, predictions_of: Callable[[str], Sequence[tuple[dict[str, float], TextLabel]]]
    ) -> tuple["Classification", list[Decision]]:
        """Multi-label: the threshold of each class with the best F1 on the validation rows. Rare classes, which would fit a
        few rows, share one."""
        if not self.multi_label or self.threshold != "validation":
            return self, []
        predicted = predictions_of("")
        if not predicted:
            reason = Message("there are no validation rows to choose thresholds on")
            return self, [Decision("objective.threshold", THRESHOLD, reason)]
        scored = {c: [(p[c], c in x.labels) for p, x in predicted] for c in self.classes}
        rare = [c for c in self.classes if sum(applies for _, applies in scored[c]) < MIN_ROWS]
        shared = best_threshold([x for c in rare for x in scored[c]], THRESHOLD)
        thresholds = {c: shared if c in rare else best_threshold(scored[c], THRESHOLD) for c in self.classes}
        reason = Message("best F1 of each class on {num_rows} validation rows", num_rows=len(predicted))
        if rare:
            reason = Message(
                "best F1 of each class on {num_rows} validation rows; those in fewer than {min_rows} share one: {classes}",
                num_rows=len(predicted),
                min_rows=MIN_ROWS,
                classes=", ".join(rare)[:60],
            )
        rounded = {c: round(x, 4) for c, x in thresholds.items()}
        return self.model_copy(update={"threshold": thresholds}), [Decision("objective.threshold", rounded, reason)]

    def _chosen(self, probabilities: dict[str, float]) -> tuple[str, ...]:
        """The classes that apply."""
        if self.multi_label:
            return tuple(sorted(c for c, p in probabilities.items() if p >= self._threshold_of(c)))
        return (max(probabilities, key=lambda c: probabilities[c]),)

    def _threshold_of(self, name: str) -> float:
        """Multi-label: the probability from which a class applies."""
        if isinstance(self.threshold, dict):
            return self.threshold.get(name, THRESHOLD)
        return THRESHOLD if self.threshold == "validation" else self.threshold

    def to_record(self, prediction: dict[str, float]) -> dict[str, Any]:
        """Probabilities; multi-label: and the classes that apply as a list."""
        predicted = {"predicted": list(self._chosen(prediction))} if self.multi_label else {}
        return {**predicted, "probabilities": {name: round(p, 6) for name, p in prediction.items()}}

    def answer(self, prediction: dict[str, float]) -> str:
        return ", ".join(self._chosen(prediction)) or "none"

    def metric_pair(self, prediction: dict[str, float], example: TextLabel) -> tuple[Any, Any]:
        return self._chosen(prediction), example.labels


def _natural_order(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, then text."""
    number = label.removeprefix("-").isdecimal()
    return not number, float(label) if number else 0.0, label
