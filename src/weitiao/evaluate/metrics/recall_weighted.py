"""Recall, weighted: right / reference, the mean over the classes, each weighted by the number of its references.

The figure of scikit-learn's recall_score(average="weighted", zero_division=0); see evaluate/class_counts.py.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_counts import averaged_score


class RecallWeighted(Metric):
    """Recall, mean over the classes, weighted by their references."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        return averaged_score(self.name, pairs, clusters, "recall", "weighted")
