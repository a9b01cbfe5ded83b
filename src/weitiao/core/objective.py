"""The contract Objective -> Loss: what is learnt.

Sums and counts: a Loss is never a mean. `counts` is known without a forward pass, so the loop can divide by the count
of the whole window before it back-propagates. An objective never calls the model itself, only TrainableModel.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.batch import IGNORE, Batch, Loss, Row
from weitiao.core.errors import RecipeError
from weitiao.core.example import Example
from weitiao.core.hardware import Decision
from weitiao.core.processor import Processor
from weitiao.core.registry import Component
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

MASKED = "masked_lm"  # the head that turns an encoder's hidden states into words


class Objective(Component):
    """One file in objective/ holds one Objective: a frozen model of its settings."""

    default_traits: ClassVar[Traits]
    """The traits with default settings: what `find("objective", ...)` can tell without a recipe."""

    @property
    def traits(self) -> Traits:
        """The traits with these settings."""
        return self.default_traits

    def metrics_for(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The metrics for these examples when the recipe names none."""
        return self.traits.metrics

    def fit(self, examples: Sequence[Example]) -> "Objective":
        """The objective that knows what only the data know (the labels)."""
        return self

    def parts(self) -> dict[str, "Objective"]:
        """By task, what learns it; "" where there is one task."""
        return {"": self}

    def part(self, task: str) -> "Objective":
        """What learns the rows of a task.

        Raises:
            RecipeError: there is no such task.
        """
        if task:
            raise RecipeError(f"task: {task} is for objective: multi_task; {self.name} is one task and has no name.")
        return self

    def epoch_weights(self, rows: dict[str, int]) -> dict[str, float]:
        """By task, how often its rows are used an epoch, of tasks with so many rows; those not named: once."""
        return {}

    @property
    def head_labels(self) -> Any:
        """What the heads' outputs stand for (classes, tags): a head that was learnt for others is not taken over."""
        return None

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Heads on the hidden states [T, D], by name; none: the language-model head."""
        return {}

    @abstractmethod
    def rows(self, example: Any, processor: Processor) -> list[Row]:
        """One Example as one or more encoded rows."""

    def choose_head_rate(self) -> Decision | None:
        """The heads' peak learning rate; None: that of all else."""
        return None

    def encode_input(self, example: Any, processor: Processor) -> Row:
        """What the model is shown of an Example whose answer nobody knows. Objectives that write have none."""
        raise NotImplementedError

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """(a row that is too long, cut to the context; the token ids that are lost). The end of the answer stays."""
        kept = Row(input_ids=row["input_ids"][-max_length:], labels=row["labels"][-max_length:])
        return kept, [int(x) for x in row["input_ids"][:-max_length]]

    def num_positions(self, row: Row) -> int:
        """How many of a row's tokens the model reads at once: what the context bounds."""
        return len(row["input_ids"])

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """A row that is too long, as several that overlap and together hold each label once (`overlong: window`)."""
        words = f"objective {self.name} does not read a long text in windows; write cut, drop or split"
        raise RecipeError(f"overlong: {words}.")

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> list[tuple[str, str]]:
        """A row as it is drawn before step 1: stretches of text, each "learnt", "read" or "lost" (`lost` are the ids
        that were cut off). Here token t + 1 is learnt where position t has a label; the last learnt token is not among
        the inputs and comes from its label."""
        ids, labels = list(row["input_ids"]), list(row["labels"])
        tokens = [*(("lost", token) for token in lost), ("read", ids[0])]
        for label, token in zip(labels, [*ids[1:], IGNORE]):
            tokens.append(("learnt", label) if label != IGNORE else ("read", token))
        stretches = groupby((x for x in tokens if x[1] != IGNORE), key=lambda x: x[0])
        return [
            (kind, processor.decode([int(token) for _, token in stretch], skip_special_tokens=False))
            for kind, stretch in stretches
        ]

    def rollout(self, model: TrainableModel, batch: Batch) -> Batch:
        """Turn prompts into experience (reinforcement learning). Others learn the batch as it is."""
        return batch

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """By task, what the loss will be divided by; without a forward pass."""

    @abstractmethod
    def loss(self, model: TrainableModel, batch: Batch) -> Loss: ...

    def log_probs(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[N, C]: the log-probability of every choice, at everything that the loss is a sum over."""
        raise NotImplementedError

    def predict(self, model: TrainableModel, batch: Batch) -> list[Any]:
        """What the head says of each segment; labels only tell which positions are asked, never what is right.
        Objectives that write have none and answer by `model.generate`."""
        raise NotImplementedError

    def merge_windows(self, said: Sequence[Any], example: Any, processor: Processor) -> Any:
        """What was predicted of an example, from what was predicted of each of its rows."""
        return said[0]

    def to_record(self, said: Any) -> dict[str, Any]:
        """What `weitiao predict` writes of a prediction beside the answer itself: probabilities, places."""
        return {}

    def answer(self, said: Any) -> str | None:
        """What was predicted of an example, as a person reads it; None: it is nothing that words say."""
        return str(said)

    def metric_pair(self, said: Any, example: Any) -> tuple[Any, Any]:
        """(what was predicted, what would be right) as metrics compare them."""
        return self.answer(said), example.answer

    def metric_pairs(self, predicted: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """`judged` of every (prediction, example); objectives that find one among all look at them together."""
        return [self.metric_pair(said, example) for said, example in predicted]

    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        """By task, the sum that the loss of a step is made of, without what regularizers add."""
        return {self.name: sum(total for total, _ in self.segment_losses(model, batch))}

    def calibrate(self, ask: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple["Objective", list[Decision]]:
        """The objective with what can only be chosen when the model has learnt (thresholds), and what to say of it.

        Args:
            ask: a task's name ("" where there is one) -> what is predicted of each validation row, and its example.
        """
        return self, []

    @abstractmethod
    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        """(sum, count) of each segment, for validation: rows are what intervals are made over."""


class HeadObjective(Objective):
    """An objective with a new head on the hidden states, whose rows each have a loss of their own: an encoder will do."""

    head_learning_rate: float = Field(default=1e-3, gt=0)
    """The new head's own rate: it begins at random, the rest is pretrained and may move slowly."""

    def choose_head_rate(self) -> Decision:
        words = "a new head begins at random and may learn faster than what is pretrained"
        return Decision("objective.head_learning_rate", self.head_learning_rate, words)

    @abstractmethod
    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: what each row's loss is divided by; without a forward pass."""

    @abstractmethod
    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row, a sum."""

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(self.row_counts(batch).sum())}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return Loss({self.name: self.row_losses(model, batch).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        return list(zip(self.row_losses(model, batch).tolist(), self.row_counts(batch).tolist()))
