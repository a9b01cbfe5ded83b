"""The contract Objective: what a model is trained on. Three small contracts, by who asks:

    RowEncoder      Example -> encoded rows          data/
    LossFunction    batch -> sums and counts         train/, and evaluate/ for the validation loss
    Predictor       batch -> predictions, metrics    evaluate/ and `weitiao predict`

Objective puts them together with its traits, its settings and its heads. It never calls the model itself, only
TrainableModel. A Loss is never a mean: `counts` needs no forward pass, so the loop divides by the count of the whole
accumulation window, over all processes, before it back-propagates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.batch import IGNORE, Batch, Loss, Row, take_tokens
from weitiao.core.errors import RecipeError
from weitiao.core.example import Example
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.registry import Component, nearest
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

MASKED = "masked_lm"  # the head that maps an encoder's hidden states to the vocabulary
Preview = list[tuple[str, str]]
"""A row as stretches of text, each "context" (read), "target" (trained on) or "lost" (cut off)."""


class RowEncoder(ABC):
    """How Examples become rows of token ids and labels; `data/` reads it."""

    @abstractmethod
    def as_recipe(self) -> dict[str, Any]:
        """The settings: the cache of encoded rows depends on them."""

    @abstractmethod
    def rows(self, example: Any, processor: Processor) -> list[Row]:
        """One Example as one or more encoded rows.

        Raises:
            InvalidValue: the example cannot be used; it is listed in bad_rows.jsonl.
        """

    def encode_input(self, example: Any, processor: Processor) -> Row:
        """An Example without its answer, as the model sees it at inference."""
        raise NotImplementedError

    def num_positions(self, row: Row) -> int:
        """The positions that a row takes in the model: what `max_length` limits."""
        return len(row["input_ids"])

    @abstractmethod
    def num_targets(self, row: Row) -> int:
        """How much of the row is trained on, to be reported as "n tokens carry loss"; 0: such a row is not used."""

    @abstractmethod
    def overlong_of(self, row: Row) -> str:
        """What `overlong: auto` means for this row."""

    @abstractmethod
    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """(an overlong row, truncated to `max_length`; the token ids that are lost)."""

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """An overlong row as overlapping windows, which together have each label once."""
        raise RecipeError("overlong: this objective has no sliding_window; use truncate, drop or split")

    @abstractmethod
    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """A row as it is shown before step 1.

        Args:
            lost: the token ids that were cut off.
        """


class LossFunction(ABC):
    """The sums that are trained on; `train/` reads it."""

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """The traits with these settings."""

    @property
    @abstractmethod
    def task_names(self) -> tuple[str, ...]:
        """The tasks that rows belong to; ("",): there is one, without a name."""

    def rollout(self, model: TrainableModel, batch: Batch) -> Batch:
        """Turn prompts into experience (reinforcement learning). Other objectives return the batch as it is."""
        return batch

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """By task, what the loss will be divided by; needs no forward pass."""

    @abstractmethod
    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        """The batch's sums by task, with their gradient."""

    @abstractmethod
    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        """By task, the sum that a step's loss is made of, without regularizers."""

    @abstractmethod
    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        """(sum, count) of each segment, for validation: confidence intervals are over rows."""

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[N, C]: the log-probability of every choice, for each of the N terms that the loss sums."""
        raise NotImplementedError


class Predictor(ABC):
    """What a trained model answers, and how metrics compare it; `evaluate/` and `weitiao predict` read it."""

    @abstractmethod
    def metrics_for(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The metrics for these examples when the recipe names none."""

    def predict(self, model: TrainableModel, batch: Batch) -> list[Any]:
        """The prediction of each segment. Labels may mark positions; their values are never read.

        Objectives that answer by `model.generate` have none.
        """
        raise NotImplementedError

    def merge_windows(self, predictions: Sequence[Any], example: Any, processor: Processor) -> Any:
        """The prediction of an example, from those of its rows."""
        return predictions[0]

    def to_record(self, prediction: Any) -> dict[str, Any]:
        """What `weitiao predict` writes next to the answer: probabilities, character offsets."""
        return {}

    def answer(self, prediction: Any) -> str | None:
        """The prediction as text; None: it has no text."""
        return str(prediction)

    def metric_pair(self, prediction: Any, example: Any) -> tuple[Any, Any]:
        """(prediction, reference) as metrics compare them."""
        return self.answer(prediction), example.answer

    def metric_pairs(
        self, predicted: Sequence[tuple[Any, Any]], by_query: bool = False, corpus: Sequence[tuple[Any, Any]] = ()
    ) -> list[tuple[Any, Any]]:
        """`metric_pair` of every (prediction, example). Retrieval objectives rank all of them together.

        Args:
            by_query: of a retrieval objective: (ranks of all relevant documents from 1, number of documents) of each query.
            corpus: of a retrieval objective: what is predicted of further documents, each alone, and those.
        """
        pairs = [self.metric_pair(prediction, example) for prediction, example in predicted]
        return [((rank,), documents) for rank, documents in pairs] if by_query else pairs

    def probabilities(self, prediction: Any) -> Mapping[str, float] | None:
        """The probability of every class, where that is what is predicted; None: it predicts no classes."""
        return prediction if isinstance(prediction, Mapping) else None

    @abstractmethod
    def calibrate(self, predictions_of: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple["Objective", list[Decision]]:
        """The objective with what is chosen after training (thresholds), and the decisions.

        Args:
            predictions_of: task name ("" where there is one) -> (prediction, example) of each validation row.
        """


class Objective(Component, RowEncoder, LossFunction, Predictor):
    """One file in objective/objectives/ holds one Objective: a frozen model of its settings."""

    default_traits: ClassVar[Traits]
    """The traits with default settings: what can be told without a recipe."""

    @property
    def traits(self) -> Traits:
        return self.default_traits

    def fit(self, examples: Sequence[Any]) -> "Objective":
        """The objective with what only the training data know, such as the classes.

        Raises:
            DataError: the data cannot be trained on.
        """
        return self

    def with_room(self, longest: int) -> "Objective":
        """The objective with room for its longest answer, where it generates answers itself.

        Args:
            longest: tokens of the longest target.
        """
        return self

    # -- heads --------------------------------------------------------------------------------------------------------

    def heads(self, width: int) -> dict[str, nn.Module]:
        """New heads on the hidden states [T, D], by name; none: the language-model head."""
        return {}

    def plain_form(self, kind: str) -> PlainForm | None:
        """The heads as other libraries have them; None: there are none.

        Args:
            kind: of the model: encoder or decoder.
        """
        if not self.traits.needs_mlm_head and not self.heads(1):
            return None
        obstacle = Message("objective {objective} has a head that other libraries do not know", objective=self.name)
        return PlainForm("scores", obstacle=obstacle)

    def generation_settings(self, processor: Processor) -> dict[str, Any]:
        """What the model's generation config must say for its answers: the language of a translation."""
        return {}

    def choose_head_rate(self) -> Decision | None:
        """The heads' peak learning rate; None: the same as for all other weights."""
        return None

    # -- tasks --------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, "Objective"]:
        """The objective of each task; {"": self} where there is one task."""
        return {"": self}

    def part(self, task: str) -> "Objective":
        """The objective of a task.

        Raises:
            RecipeError: there is no such task.
        """
        parts = self.parts()
        if task in parts:
            return parts[task]
        if "" in parts:
            raise RecipeError("task: {task} needs objective: multi_task; {name} has one task", task=task, name=self.name)
        tasks = ", ".join(parts)
        if not task:
            raise RecipeError("task: each row belongs to a task; name one of: {tasks}", tasks=tasks)
        raise RecipeError(
            "task: there is no {task!r}.{hint} There are: {tasks}", task=task, hint=nearest(task, list(parts)), tasks=tasks
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.parts())

    def epoch_weights(self, num_rows: dict[str, int]) -> dict[str, float]:
        """By task, how many times its rows are used per epoch; tasks that are not named: once.

        Args:
            num_rows: by task.
        """
        return {}

    # -- defaults -----------------------------------------------------------------------------------------------------

    def num_targets(self, row: Row) -> int:
        return int((np.asarray(row["labels"]) != IGNORE).sum())

    def overlong_of(self, row: Row) -> str:
        return self.traits.overlong

    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        return {self.name: sum(total for total, _ in self.segment_losses(model, batch))}

    def metrics_for(self, examples: Sequence[Example]) -> tuple[str, ...]:
        return self.traits.metrics

    def calibrate(self, predictions_of: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple["Objective", list[Decision]]:
        return self, []


class LikelihoodObjective(Objective):
    """Trains on tokens by their negative log-likelihood: `labels[t]` is what position t must generate next."""

    def token_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[N] fp32: the loss of every supervised token."""
        return -model.logprobs(batch)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float((batch.labels != IGNORE).sum())}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return Loss({self.name: self.token_losses(model, batch).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        counts = [int((labels != IGNORE).sum()) for labels in batch.labels.split(list(batch.lengths))]
        losses = self.token_losses(model, batch).detach().split(counts)
        return [(float(x.sum()), float(count)) for x, count in zip(losses, counts)]

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        return model.logits(batch, batch.supervised).log_softmax(-1)

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The end stays, and with it the answer."""
        start = len(row["input_ids"]) - max_length
        return take_tokens(row, range(start, start + max_length)), [int(x) for x in row["input_ids"][:start]]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """Token t + 1 is trained on where position t has a label; the last one is not an input and is only a label."""
        ids, labels = list(row["input_ids"]), list(row["labels"])
        tokens = [*(("lost", token) for token in lost), ("context", ids[0])]
        for label, token in zip(labels, [*ids[1:], IGNORE]):
            tokens.append(("target", label) if label != IGNORE else ("context", token))
        stretches = groupby((x for x in tokens if x[1] != IGNORE), key=lambda x: x[0])
        return [
            (kind, processor.decode([int(token) for _, token in stretch], skip_special_tokens=False))
            for kind, stretch in stretches
        ]


class HeadObjective(Objective):
    """Trains a new head on the hidden states; each row has its own loss. Encoder-only models will do."""

    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the new head: it starts at random, while all else is pretrained."""

    def choose_head_rate(self) -> Decision:
        reason = Message("a new head starts at random, so its learning rate may be higher")
        return Decision("objective.head_learning_rate", self.head_learning_rate, reason)

    @abstractmethod
    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row, a sum."""

    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: what each row's loss is divided by; needs no forward pass."""
        return batch.labels.new_ones(len(batch.lengths)).float()

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(self.row_counts(batch).sum())}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return Loss({self.name: self.row_losses(model, batch).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        return list(zip(self.row_losses(model, batch).tolist(), self.row_counts(batch).tolist()))

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The beginning stays, and the last token, which ends every row."""
        last = len(row["input_ids"]) - 1
        lost = [int(x) for x in row["input_ids"][max_length - 1 : last]]
        return take_tokens(row, [*range(max_length - 1), last]), lost
