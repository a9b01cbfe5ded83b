"""Mean squared error, in squared units of the data; with several numbers per row, their mean."""

from typing import Any, ClassVar

import numpy as np

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.regression_stats import score_numbers


class MSE(Metric):
    """Mean of (predicted - reference)^2."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(predicted, reference) numbers of each row; a bootstrap over rows."""
        return score_numbers(self.name, pairs, clusters, lambda a, b: float(np.mean((a - b) ** 2)), higher_is_better=False)
