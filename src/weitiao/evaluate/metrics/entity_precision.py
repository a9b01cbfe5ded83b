"""Share of the predicted entities that are correct (boundaries and type). As seqeval's precision_score."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.entities import score


class EntityPrecision(Metric):
    """Share of the predicted entities that are correct."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Sequence[str], Sequence[str]]], clusters: Clusters = ()) -> Score:
        """(predicted tags, reference tags) of each row."""
        return score(self.name, pairs, clusters, lambda correct, predicted, reference: (correct, predicted))
