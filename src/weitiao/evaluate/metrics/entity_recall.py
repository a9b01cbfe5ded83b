"""Share of the reference entities that were predicted (boundaries and type). As seqeval's recall_score."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.entities import score


class EntityRecall(Metric):
    """Share of the reference entities that were predicted."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Sequence[str], Sequence[str]]], clusters: Clusters = ()) -> Score:
        """(predicted tags, reference tags) of each row."""
        return score(self.name, pairs, clusters, lambda correct, predicted, reference: (correct, reference))
