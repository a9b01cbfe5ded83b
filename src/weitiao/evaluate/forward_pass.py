"""One pass over the held-out rows: losses and predictions, and what the metrics compare of them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Example
from weitiao.core.metric import Reads
from weitiao.core.objective import Objective
from weitiao.core.trainable_model import TrainableModel, evaluating

KEPT_PREDICTIONS = 32  # whole ones, for samples
LOSSES: set[Reads] = {"row_losses", "row_bytes"}
PREDICTED: set[Reads] = {"choices", "probabilities", "answers", "rankings", "tests", "schema", "refusal"}
Progress = Callable[[Sequence[Any], str], Any]


class ForwardPass:
    """One pass over the held-out rows. Where both predictions and losses are needed, each batch runs through the backbone
    once. Of a prediction only what the metrics compare is kept, so that memory does not grow with scores [units, classes].
    """

    def __init__(
        self,
        model: TrainableModel,
        objective: Objective,
        eval_set: EvalSet,
        reads: Collection[Reads],
        limit: int | None,
        known_loss: Callable[[Row], tuple[float, float] | None] | None = None,
    ) -> None:
        """
        Args:
            reads: what the metrics read.
            limit: predict only the first `limit` examples.
            known_loss: a row's (sum, count), where it has been computed already.
        """
        self.model, self.objective, self.eval_set, self.known_loss = model, objective, eval_set, known_loss
        self.reads, self.limit = set(reads), limit
        self.predicts, self.scores = bool(self.reads & PREDICTED), bool(self.reads & LOSSES)
        self.losses: list[tuple[float, float]] = []
        """(sum, count) of each row."""
        self.num_bytes: list[int] = []
        """Bytes of the text of each row that carries loss."""
        self.row_examples: list[int] = []
        """Of each row, its example: the number of the first row that belongs to it."""
        self.probabilities: list[tuple[Mapping[str, float], Any]] = []
        """(class -> probability, reference) of each example, where they are read."""
        self.first: list[tuple[Any, Example]] = []
        """(prediction, example) of the first examples."""
        self._first_row: dict[int, int] = {}
        self._metric_pairs: list[tuple[Any, Any]] = []
        self._predicted: list[tuple[Any, Example]] = []
        self._rankings: list[tuple[Sequence[int], int]] = []
        self._corpus: list[tuple[Any, Example]] = []

    def run(self, progress: Progress) -> None:
        """The whole pass."""
        ranked, corpus = self.objective.traits.ranks_together, self.eval_set.corpus
        if corpus is not None and self.predicts:
            documents = ForwardPass(self.model, self.objective, corpus, {"choices"}, None)
            self._corpus = [x for batch in documents.batches(progress) for x in batch]
        for batch in self.batches(progress):
            batch = batch[: None if self.limit is None else max(0, self.limit - self.num_predicted)]
            self.first += batch[: max(0, KEPT_PREDICTIONS - len(self.first))]
            if ranked:
                self._predicted += batch
                continue
            pairs = self.objective.metric_pairs(batch)
            self._metric_pairs += pairs
            if "rankings" in self.reads:
                self._rankings += self.objective.metric_pairs(batch, by_query=True)
            if "probabilities" in self.reads:
                of_classes = [self.objective.probabilities(prediction) for prediction, _ in batch]
                self.probabilities += [(p, reference) for p, (_, reference) in zip(of_classes, pairs) if p is not None]

    @property
    def num_predicted(self) -> int:
        return len(self._predicted) + len(self._metric_pairs)

    def pairs(self) -> list[tuple[Any, Any]]:
        """What the metrics compare, of each example in order."""
        predicted = self._predicted
        return self.objective.metric_pairs(predicted, corpus=self._corpus) if predicted else self._metric_pairs

    def rankings(self) -> list[tuple[Sequence[int], int]]:
        """Of each query."""
        predicted = self._predicted
        return self.objective.metric_pairs(predicted, True, self._corpus) if predicted else self._rankings

    def batches(self, progress: Progress) -> Iterator[list[tuple[Any, Example]]]:
        """(prediction, example) of the examples that each batch completes; losses are collected on the way."""
        model, objective, batches = self.model, self.objective, self.eval_set.batches()
        windows: list[Any] = []  # of an example whose last row has not come yet
        example: Example | None = None
        with evaluating(model), torch.no_grad():
            for i in progress(range(len(batches)), "predictions" if self.predicts else "losses") if self._is_needed else ():
                batch = batches[i]
                predicts = self.predicts and (self.limit is None or min(batch.row_ids) < self.limit)
                if not predicts and not self.scores:
                    break
                if not predicts and (known := self._known_losses(batch)):
                    self._add_losses(batch, known)
                    continue
                batch = batch.to(model.device)
                with model.cache.on() if predicts and self.scores else nullcontext():
                    predictions = dict(zip(batch.row_ids, objective.predict(model, batch))) if predicts else {}
                    losses = dict(zip(batch.row_ids, objective.segment_losses(model, batch))) if self.scores else {}
                self._add_losses(batch, losses)
                complete: list[tuple[Any, Example]] = []
                for row, prediction in sorted(predictions.items(), key=lambda pair: pair[0]):
                    now = self.eval_set.example_of(row)
                    if example is not None and now is not example:
                        complete.append(self._merged(windows, example))
                        windows = []
                    example = now
                    windows.append(prediction)
                yield complete
        if example is not None:
            yield [self._merged(windows, example)]

    def _known_losses(self, batch: Batch) -> dict[int, tuple[float, float]]:
        """Those of all of the batch's rows; {}: it must run."""
        known = [self.known_loss(row) for row in batch.rows] if self.known_loss is not None else []
        return {row: x for row, x in zip(batch.row_ids, known) if x is not None} if all(known) else {}

    def _add_losses(self, batch: Batch, losses: Mapping[int, tuple[float, float]]) -> None:
        spans = {row: (a, b) for row, a, b in zip(batch.row_ids, batch.bounds, batch.bounds[1:])}
        for row in sorted(losses):
            self.losses.append(losses[row])
            self.row_examples.append(self._first_row.setdefault(id(self.eval_set.example_of(row)), row))
            if "row_bytes" in self.reads:
                labels = batch.labels[slice(*spans[row])]
                text = self.model.processor.decode(labels[labels != IGNORE].tolist())
                self.num_bytes.append(len(text.encode()))

    @property
    def _is_needed(self) -> bool:
        return self.predicts or self.scores

    def _merged(self, windows: list[Any], example: Example) -> tuple[Any, Example]:
        """The prediction of an example, from those of its rows (several where it was split in windows)."""
        return self.objective.merge_windows(windows, example, self.model.processor), example
