"""Classification: which class a text belongs to; or which of several.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.1; Radford et al. 2018 (GPT), sec. 3.2, for models that read forward:

    z = W dropout(pooled) + b                      [B, C]
    one class a text      loss = - w_y log softmax(z)_y                       divided by the sum of w_y
    several               loss = mean over classes of binary cross-entropy    divided by the number of texts

    encoder   [CLS] the mail says ... [SEP]        pooled: the mean of all hidden states, or the first one
    decoder   the mail says ... <end>              pooled: the last hidden state, which alone has read everything

The class stands as the label of the row's last token (several classes: of the last tokens), so that rows are laid end to
end, counted, cut and resumed as all others.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.errors import DataError
from weitiao.core.example import TextLabel
from weitiao.core.finding import Decision
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.registry import nearest
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import Pooling, TextRow, cut_end, labelled_at_end, pooled, text_row

HEAD = "classes"
MOST = 1000  # more classes than this are rather a wrong column
THRESHOLD = 0.5
ENOUGH = 10  # validation rows that hold a class, from which it gets a threshold of its own


class Classification(HeadObjective):
    """Tell which class a text belongs to, or which of several."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TextLabel,
        generative=False,
        has_log_probs=True,
        overlong="truncate",
        overlong_reason="the beginning of a long text mostly says what it is; its end is lost",
        metrics=("loss", "accuracy", "f1"),
    )

    classes: tuple[str, ...] = ()
    """The classes, in the order of the scores; none: those of the training data."""
    multi_label: bool | Literal["auto"] = "auto"
    """More than one class may hold, or none (multi-label); auto: if some row has not exactly one."""
    pooling: Pooling = "auto"
    """What stands for the text: the mean of the hidden states, the first, or the last; auto: encoders mean, others last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On what is pooled, while training."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """How much a class counts; balanced: rows / (classes x rows of the class)."""
    threshold: float | dict[str, float] | Literal["validation"] = "validation"
    """Where several classes may hold: from which probability on one does; by class; or for each class the best on the
    validation rows, chosen when all is learnt (until then 0.5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """This share of the target is spread over all classes (Szegedy et al. 2016, sec. 7)."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Losses are multiplied by (1 - p)^gamma, so that easy rows count less (Lin et al. 2017, eq. 4); 0: off."""

    def fit(self, examples: Sequence[TextLabel]) -> "Classification":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective that knows its classes and their weights."""
        counts = Counter(label for x in examples for label in x.labels)
        classes = self.classes or tuple(sorted(counts, key=_natural))
        several = any(len(x.labels) != 1 for x in examples) if self.multi_label == "auto" else self.multi_label
        if len(classes) < (1 if several else 2):
            raise DataError(f"data: every row has the class {classes[0]!r}: there is nothing to tell apart." if classes
                            else "data: no row has a class.")  # fmt: skip
        if len(classes) > MOST or (len(examples) >= 100 and len(classes) > len(examples) / 2):
            few = ", ".join(repr(x[:30]) for x in classes[:3])
            raise DataError(
                f"data: {len(classes):,} classes in {len(examples):,} rows ({few} ...). Is that the right column? "
                "Say which with columns: {text: ..., label: ...}."
            )
        weights = self.class_weights
        if weights == "balanced":
            weights = {c: round(sum(counts.values()) / (len(classes) * max(counts[c], 1)), 6) for c in classes}
        elif weights is not None and (odd := sorted(set(weights) - set(classes))):
            raise DataError(f"objective.class_weights: there is no class {odd[0]!r}. There are: {', '.join(classes)}.")
        if isinstance(self.threshold, dict) and (odd := sorted(set(self.threshold) - set(classes))):
            there = f"{nearest(odd[0], classes)} There are: {', '.join(classes)}."
            raise DataError(f"objective.threshold: there is no class {odd[0]!r}.{there}")
        return self.model_copy(update={"classes": classes, "multi_label": several, "class_weights": weights})

    @property
    def head_labels(self) -> Any:
        return self.classes

    @field_validator("threshold")
    @classmethod
    def _are_probabilities(cls, given: Any) -> Any:
        if given == "validation":
            return given
        for line in given.values() if isinstance(given, dict) else (given,):
            if not 0 <= line <= 1:
                raise ValueError(f"a threshold is a probability, from 0 to 1, or: validation (given: {line:g})")
        return given

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer; small weights, so that no class is preferred at first."""
        head = nn.Linear(width, len(self.classes))
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return {HEAD: head}

    def rows(self, example: TextLabel, processor: Processor) -> list[Row]:
        """The text, with its classes as the labels of the last tokens; the number of classes stands for none."""
        unknown = [x for x in example.labels if x not in self.classes]
        if unknown:
            raise ValueError(f"the class {unknown[0]!r} is not among those learnt: {', '.join(self.classes)[:200]}")
        if not self.multi_label and len(example.labels) != 1:
            raise ValueError(f"{len(example.labels)} classes where one is wanted; write several: true")
        held = [self.classes.index(x) for x in example.labels] or [len(self.classes)]
        return [labelled_at_end(self.encode_input(example, processor), held)]

    def encode_input(self, example: TextLabel, processor: Processor) -> TextRow:
        return text_row(processor, example.text)

    def cut(self, row: TextRow, max_length: int) -> tuple[Row, list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The beginning stays, and the last token, which ends every row."""
        return cut_end(row, max_length)

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The text, and behind it the class that is learnt."""
        held = [int(x) for x in row["labels"] if x != IGNORE]
        named = ", ".join(self.classes[x] for x in held if x < len(self.classes)) or "none"
        text = processor.decode([int(x) for x in row["input_ids"]], skip_special_tokens=False)
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        return [("context", text), *gone, ("target", f" → {named}")]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def scores(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B, C] fp32, before softmax or sigmoid."""
        return model.cache.get("scores", batch, lambda: self._scores(model, batch))

    def _scores(self, model: TrainableModel, batch: Batch) -> Tensor:
        return model.heads[HEAD](F.dropout(pooled(model, batch, self.pooling), self.dropout, model.training))

    def targets(self, batch: Batch) -> Tensor:
        """[B, C]: 1 where a class holds."""
        many = len(self.classes)
        rows = [labels[labels != IGNORE] for labels in batch.labels.split(list(batch.lengths))]
        return torch.stack([torch.bincount(x, minlength=many + 1)[:many] for x in rows]).float()

    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: the weight of each row's class."""
        if self.multi_label or not isinstance(self.class_weights, dict):
            return torch.ones(len(batch.lengths), device=batch.labels.device)
        weights = torch.tensor([self.class_weights.get(c, 1.0) for c in self.classes], device=batch.labels.device)
        return self.targets(batch) @ weights

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row, times its weight."""
        z, held = self.scores(model, batch), self.targets(batch)
        if self.multi_label:
            weights = self.class_weights if isinstance(self.class_weights, dict) else {}
            each = torch.tensor([weights.get(c, 1.0) for c in self.classes], device=z.device)
            target = held * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(z, target, reduction="none")
            p = torch.where(held > 0, z.sigmoid(), 1 - z.sigmoid())
            return (loss * (1 - p) ** self.focal_gamma * each).mean(1) if self.focal_gamma else (loss * each).mean(1)
        loss = F.cross_entropy(z, held.argmax(1), reduction="none", label_smoothing=self.label_smoothing)
        if self.focal_gamma:
            loss = loss * (1 - (z.softmax(1) * held).sum(1)) ** self.focal_gamma
        return loss * self.row_counts(batch)

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B, C]; of several classes [B C, 2], each holds or not."""
        z = self.scores(model, batch)
        return F.logsigmoid(torch.stack([z, -z], -1)).flatten(0, 1) if self.multi_label else z.log_softmax(-1)

    def predict(self, model: TrainableModel, batch: Batch) -> list[dict[str, float]]:
        """The probability of every class, a segment."""
        z = self.scores(model, batch)
        p = z.sigmoid() if self.multi_label else z.softmax(1)
        return [dict(zip(self.classes, row)) for row in p.tolist()]

    def least(self, name: str) -> float:
        """From which probability on a class holds, where several may."""
        if isinstance(self.threshold, dict):
            return self.threshold.get(name, THRESHOLD)
        return THRESHOLD if self.threshold == "validation" else self.threshold

    def calibrate(
        self, ask: Callable[[str], Sequence[tuple[dict[str, float], TextLabel]]]
    ) -> tuple["Classification", list[Decision]]:
        """Where several classes may hold: each one's threshold, by its F1 on validation rows; of rare ones, which would
        learn a few rows by heart, what is best for them together."""
        if not self.multi_label or self.threshold != "validation":
            return self, []
        rows = ask("")
        if not rows:
            return self, [Decision("objective.threshold", THRESHOLD, "no validation row to choose one on")]
        marks = {c: [(said[c], c in x.labels) for said, x in rows] for c in self.classes}
        own = {c: sum(right for _, right in each) >= ENOUGH for c, each in marks.items()}
        shared = best_threshold([mark for c, each in marks.items() if not own[c] for mark in each])
        found = {c: best_threshold(marks[c]) if own[c] else shared for c in self.classes}
        shown = ", ".join(f"{c} {line:.3g}" for c, line in found.items())
        rare = [c for c, enough in own.items() if not enough]
        words = f"the best F1 of each on {len(rows)} validation rows"
        words += f"; of {', '.join(rare)[:60]}, in fewer than {ENOUGH} of them, together" if rare else ""
        return self.model_copy(update={"threshold": found}), [Decision("objective.threshold", shown, words)]

    def chosen(self, said: dict[str, float]) -> tuple[str, ...]:
        """The classes that hold, by their probabilities."""
        if self.multi_label:
            return tuple(sorted(c for c, p in said.items() if p >= self.least(c)))
        return (max(said, key=lambda c: said[c]),)

    def to_record(self, said: dict[str, float]) -> dict[str, Any]:
        """Probabilities; and where several classes may hold, a list of those that do."""
        held = {"predicted": list(self.chosen(said))} if self.multi_label else {}
        return {**held, "probabilities": {name: round(p, 6) for name, p in said.items()}}

    def answer(self, said: dict[str, float]) -> str:
        return ", ".join(self.chosen(said)) or "none"

    def metric_pair(self, said: dict[str, float], example: TextLabel) -> tuple[Any, Any]:
        return self.chosen(said), example.labels


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, then words."""
    number = label.lstrip("-").isdigit()
    return not number, float(label) if number else 0.0, label


def best_threshold(marks: Sequence[tuple[float, bool]]) -> float:
    """Between which two probabilities a line gives the best F1, exactly; 0.5 where nothing is right.

    Args:
        marks: (probability, whether it is right).

    >>> best_threshold([(0.9, True), (0.4, True), (0.3, False), (0.1, False)])
    0.35
    """
    ranked, right = sorted(marks, reverse=True), sum(mark for _, mark in marks)
    best, line, hits = 0.0, THRESHOLD, 0
    for i, (p, mark) in enumerate(ranked, 1):
        hits += mark
        below = ranked[i][0] if i < len(ranked) else 0.0
        f1 = 2 * hits / (i + right)
        if below < p and f1 > best:
            best, line = f1, (p + below) / 2
    return line
