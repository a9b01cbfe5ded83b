"""Average precision: the area under the precision-recall curve of each class; the mean over the classes.

Manning, Raghavan & Schütze 2008, sec. 8.4; scikit-learn's average_precision_score(average="macro") of one column per class.
Unlike AUROC, chance is not 0.5 but the share of the class. With one class only it is undefined, and there is no score.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_probabilities import average_precision, mean_over_classes


class AveragePrecision(Metric):
    """Average precision, the mean over the classes."""

    reads: ClassVar[Reads] = "probabilities"

    def score(self, pairs: list[tuple[Mapping[str, float], Any]], clusters: Clusters = ()) -> Score:
        """(class -> probability, reference) of each row; a bootstrap over rows."""
        return mean_over_classes(self.name, pairs, clusters, average_precision)
