"""Share of the entities that were found that are right, beginning, end and kind. As seqeval's precision_score."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.entities import score


class EntityPrecision(Metric):
    """Share of the found entities that are right."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Sequence[str], Sequence[str]]]) -> Score:
        """(predicted tags, right tags) of each row."""
        return score(self.name, pairs, lambda both, found, there: (both, found))
