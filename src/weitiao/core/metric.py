"""The contract Metric: a Score from pairs of prediction and reference."""

from abc import abstractmethod
from typing import Any, ClassVar

from weitiao.core.registry import Component
from weitiao.core.score import Score


class Metric(Component):
    """One file in evaluate/metrics/ holds one Metric: a frozen model of its settings."""

    reads: ClassVar[str]
    """What its pairs are: "row_losses", "choices" (one of a closed set of answers) or "answers" (generated text)."""
    compares_texts: ClassVar[bool] = True
    """Its pairs may be texts, such as generated answers; False: numbers, tags or ranks."""

    @abstractmethod
    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """The score of all rows, each a pair (prediction, reference); for "row_losses" (sum, count)."""
