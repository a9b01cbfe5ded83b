"""F1, micro: 2 right / (predicted + reference), the counts of all classes together.

The figure of scikit-learn's f1_score(average="micro", zero_division=0); see evaluate/class_counts.py.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_counts import averaged_score


class F1Micro(Metric):
    """F1, of all classes together."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        return averaged_score(self.name, pairs, clusters, "f1", "micro")
