"""Mean absolute error, in the data's own units. Of several numbers, the mean of theirs."""

from typing import Any, ClassVar

import numpy as np

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.regression_stats import score_numbers


class MAE(Metric):
    """Mean of |predicted - right|."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(predicted, right) of each row, each with its numbers; a bootstrap over rows."""
        return score_numbers(self.name, pairs, lambda a, b: float(np.mean(np.abs(a - b))), higher_is_better=False)
