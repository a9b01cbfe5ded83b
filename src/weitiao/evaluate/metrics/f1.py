"""Macro-F1: the mean of every class's F1, so that each class has the same weight, however rare. The same as f1_macro.

van Rijsbergen 1979, ch. 7: F1 = 2 p r / (p + r). Averaged are all classes that occur, as a reference or as an answer, as in
scikit-learn's f1_score(average="macro", zero_division=0): a class that is only answered, and never right, counts with 0.
A generated answer that is no class is such a class. Classes are compared to the letter.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_counts import averaged_score


class F1(Metric):
    """Macro-F1 of generated answers or predicted classes."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        return averaged_score(self.name, pairs, clusters, "f1", "macro")
