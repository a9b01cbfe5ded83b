"""Share of the entities there are that were found, beginning, end and kind. As seqeval's recall_score."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.entities import score


class EntityRecall(Metric):
    """Share of the entities there are that were found."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Sequence[str], Sequence[str]]]) -> Score:
        """(predicted tags, right tags) of each row."""
        return score(self.name, pairs, lambda both, found, there: (both, there))
