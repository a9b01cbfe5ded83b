"""Area under the ROC curve: how well the probabilities of each class separate its rows from the others.

Fawcett 2006, sec. 9: one class against all others, and the mean over the classes (scikit-learn's
roc_auc_score(multi_class="ovr", average="macro"); with several classes per row, average="macro"). 0.5: no better than
chance. With one class only it is undefined, and there is no score.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.class_probabilities import auroc, mean_over_classes


class AUROC(Metric):
    """Area under the ROC curve, the mean over the classes."""

    reads: ClassVar[Reads] = "probabilities"

    def score(self, pairs: list[tuple[Mapping[str, float], Any]], clusters: Clusters = ()) -> Score:
        """(class -> probability, reference) of each row; a bootstrap over rows."""
        return mean_over_classes(self.name, pairs, clusters, auroc)
