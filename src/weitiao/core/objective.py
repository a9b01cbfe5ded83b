"""The contract Objective -> Loss: what is learnt.

Sums and counts: a Loss is never a mean. `counts` is known without a forward pass, so the loop can divide by the count
of the whole window before it back-propagates. An objective never calls the model itself, only TunableModel.
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
from weitiao.core.hardware import Choice
from weitiao.core.processor import Processor
from weitiao.core.registry import Part
from weitiao.core.trainable_model import TunableModel

MASKED = "masked_lm"  # the head that turns an encoder's hidden states into words


class Objective(Part):
    """One file in objective/ holds one Objective: a frozen model of its settings."""

    eats: ClassVar[type]
    """The Example it learns from."""
    couples_rows: ClassVar[bool] = False
    """One row's loss depends on the others of its batch: such batches are never split."""
    draws_anew: ClassVar[bool] = False
    """Each step shows other tokens in place of a row's own."""
    repacks: ClassVar[bool] = False
    """It packs its rows' texts anew, so which row an embedded token belongs to is its own affair."""
    splits: ClassVar[bool] = False
    """A row may be learnt in pieces: each token has a label of its own."""
    step: ClassVar[str] = "accumulate"
    """The part of train/steps/ that this objective needs."""
    too_long: ClassVar[str] = "refuse"
    """What `too_long: auto` means for rows longer than the context."""
    too_long_reason: ClassVar[str] = ""
    writes: ClassVar[bool] = True
    """It needs a model that writes; False: an encoder will do."""
    distributes: ClassVar[bool] = False
    """It has `log_probs`: a distribution over choices, which regularizers compare."""
    predicts: ClassVar[bool] = False
    """It writes, and yet answers by `predict`: a closed set of answers, or what a decoder makes of a text."""
    halves: ClassVar[bool] = False
    """It needs a model of two halves, an encoder that reads and a decoder that writes."""
    recovers: ClassVar[bool] = False
    """It recovers masked words: it needs an encoder, and is given its masked-LM head as the head MASKED."""
    likelihood: ClassVar[bool] = False
    """Its loss is the plain negative log-likelihood of the labels, so that it can be checked by hand."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    """What is measured when the recipe names no metrics."""
    also: ClassVar[tuple[str, ...]] = ()
    """What may be measured besides."""

    def measured(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """What is measured of these examples when the recipe names no metrics."""
        return self.metrics

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
            raise RecipeError(f"task: {task} is for objective: many_tasks; {self.name} is one task and has no name.")
        return self

    def often(self, rows: dict[str, int]) -> dict[str, float]:
        """By task, how often its rows are used an epoch, of tasks with so many rows; those not named: once."""
        return {}

    @property
    def head_means(self) -> Any:
        """What the heads' outputs stand for (classes, tags): a head that was learnt for others is not taken over."""
        return None

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Heads on the hidden states [T, D], by name; none: the language-model head."""
        return {}

    @abstractmethod
    def rows(self, example: Any, processor: Processor) -> list[Row]:
        """One Example as one or more encoded rows."""

    def choose_head_rate(self) -> Choice | None:
        """The heads' peak learning rate; None: that of all else."""
        return None

    def given(self, example: Any, processor: Processor) -> Row:
        """What the model is shown of an Example whose answer nobody knows. Objectives that write have none."""
        raise NotImplementedError

    def cut(self, row: Row, context: int) -> tuple[Row, list[int]]:
        """(a row that is too long, cut to the context; the token ids that are lost). The end of the answer stays."""
        kept = Row(input_ids=row["input_ids"][-context:], labels=row["labels"][-context:])
        return kept, [int(x) for x in row["input_ids"][:-context]]

    def reach(self, row: Row) -> int:
        """How many of a row's tokens the model reads at once: what the context bounds."""
        return len(row["input_ids"])

    def windows(self, row: Row, context: int) -> list[Row]:
        """A row that is too long, as several that overlap and together hold each label once (`too_long: window`)."""
        words = f"objective {self.name} does not read a long text in windows; write cut, drop or split"
        raise RecipeError(f"too_long: {words}.")

    def pieces(self, row: Row, lost: Sequence[int], processor: Processor) -> list[tuple[str, str]]:
        """A row as it is drawn before step 1: stretches of text, each "learnt", "read" or "lost" (`lost` are the ids
        that were cut off). Here token t + 1 is learnt where position t has a label; the last learnt token is not among
        the inputs and comes from its label."""
        ids, labels = list(row["input_ids"]), list(row["labels"])
        tokens = [*(("lost", token) for token in lost), ("read", ids[0])]
        for label, token in zip(labels, [*ids[1:], IGNORE]):
            tokens.append(("learnt", label) if label != IGNORE else ("read", token))
        stretches = groupby((x for x in tokens if x[1] != IGNORE), key=lambda x: x[0])
        return [(kind, processor.spelt([int(token) for _, token in stretch])) for kind, stretch in stretches]

    def explore(self, model: TunableModel, batch: Batch) -> Batch:
        """Turn prompts into experience (reinforcement learning). Others learn the batch as it is."""
        return batch

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """By task, what the loss will be divided by; without a forward pass."""

    @abstractmethod
    def loss(self, model: TunableModel, batch: Batch) -> Loss: ...

    def log_probs(self, model: TunableModel, batch: Batch) -> Tensor:
        """[N, C]: the log-probability of every choice, at everything that the loss is a sum over."""
        raise NotImplementedError

    def predict(self, model: TunableModel, batch: Batch) -> list[Any]:
        """What the head says of each segment; labels only tell which positions are asked, never what is right.
        Objectives that write have none and answer by `model.generate`."""
        raise NotImplementedError

    def join(self, said: Sequence[Any], example: Any, processor: Processor) -> Any:
        """What was predicted of an example, from what was predicted of each of its rows."""
        return said[0]

    def shown(self, said: Any) -> dict[str, Any]:
        """What `weitiao predict` writes of a prediction beside the answer itself: probabilities, places."""
        return {}

    def answer(self, said: Any) -> str | None:
        """What was predicted of an example, as a person reads it; None: it is nothing that words say."""
        return str(said)

    def judged(self, said: Any, example: Any) -> tuple[Any, Any]:
        """(what was predicted, what would be right) as metrics compare them."""
        return self.answer(said), example.answer

    def judge(self, predicted: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """`judged` of every (prediction, example); objectives that find one among all look at them together."""
        return [self.judged(said, example) for said, example in predicted]

    def told(self, model: TunableModel, batch: Batch) -> dict[str, float]:
        """By task, the sum that the loss of a step is made of, without what regularizers add."""
        return {self.name: sum(total for total, _ in self.row_losses(model, batch))}

    def tuned(self, ask: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple["Objective", list[Choice]]:
        """The objective with what can only be chosen when the model has learnt (thresholds), and what to say of it.

        Args:
            ask: a task's name ("" where there is one) -> what is predicted of each validation row, and its example.
        """
        return self, []

    @abstractmethod
    def row_losses(self, model: TunableModel, batch: Batch) -> list[tuple[float, float]]:
        """(sum, count) of each segment, for validation: rows are what intervals are made over."""


class Headed(Objective):
    """An objective with a new head on the hidden states, whose rows each have a loss of their own: an encoder will do."""

    writes: ClassVar[bool] = False

    head_learning_rate: float = Field(default=1e-3, gt=0)
    """The new head's own rate: it begins at random, the rest is pretrained and may move slowly."""

    def choose_head_rate(self) -> Choice:
        words = "a new head begins at random and may learn faster than what is pretrained"
        return Choice("objective.head_learning_rate", self.head_learning_rate, words)

    @abstractmethod
    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: what each row's loss is divided by; without a forward pass."""

    @abstractmethod
    def each(self, model: TunableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row, a sum."""

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(self.row_counts(batch).sum())}

    def loss(self, model: TunableModel, batch: Batch) -> Loss:
        return Loss({self.name: self.each(model, batch).sum()})

    def row_losses(self, model: TunableModel, batch: Batch) -> list[tuple[float, float]]:
        return list(zip(self.each(model, batch).tolist(), self.row_counts(batch).tolist()))
