"""F1, macro: 2 right / (predicted + reference), the mean over the classes that occur, as references or as answers.

The figure of scikit-learn's f1_score(average="macro", zero_division=0); see evaluate/class_counts.py.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_counts import averaged_score


class F1Macro(Metric):
    """F1, mean over the classes."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        return averaged_score(self.name, pairs, clusters, "f1", "macro")
