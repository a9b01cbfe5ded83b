"""The contract Objective -> Loss: what is learnt.

Sums and counts: a Loss is never a mean. `counts` is known without a forward pass, so the loop can divide by the count
of the whole window before it back-propagates. An objective never calls the model itself, only TunableModel.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from weitiao.core.batch import Batch, Loss, Row
from weitiao.core.example import Example
from weitiao.core.processor import Processor
from weitiao.core.registry import Part
from weitiao.core.tunable import TunableModel


class Objective(Part):
    """One file in objective/ holds one Objective: a frozen model of its settings."""

    eats: ClassVar[type]
    """The Example it learns from."""
    couples_rows: ClassVar[bool] = False
    """One row's loss depends on the others of its batch: such batches are never split."""
    step: ClassVar[str] = "accumulate"
    """The part of train/steps/ that this objective needs."""
    too_long: ClassVar[str] = "refuse"
    """What `too_long: auto` means for rows longer than the context."""
    too_long_reason: ClassVar[str] = ""
    likelihood: ClassVar[bool] = False
    """Its loss is the plain negative log-likelihood of the labels, so that it can be checked by hand."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    """What is measured when the recipe names no metrics."""

    def fit(self, examples: Sequence[Example]) -> "Objective":
        """The objective that knows what only the data know (the labels)."""
        return self

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Heads on the hidden states [T, D], by name; none: the language-model head."""
        return {}

    @abstractmethod
    def rows(self, example: Any, processor: Processor) -> list[Row]:
        """One Example as one or more encoded rows."""

    def explore(self, model: TunableModel, batch: Batch) -> Batch:
        """Turn prompts into experience (reinforcement learning). Others learn the batch as it is."""
        return batch

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """By task, what the loss will be divided by; without a forward pass."""

    @abstractmethod
    def loss(self, model: TunableModel, batch: Batch) -> Loss: ...

    @abstractmethod
    def row_losses(self, model: TunableModel, batch: Batch) -> list[tuple[float, float]]:
        """(sum, count) of each segment, for validation: rows are what intervals are made over."""
