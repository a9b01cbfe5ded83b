"""exp(loss per supervised token). Jelinek et al. 1977."""

import math
from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, ratio_of_sums


class Perplexity(Metric):
    """exp of the loss per supervised token."""

    reads: ClassVar[Reads] = "row_losses"

    def score(self, pairs: list[tuple[float, float]], clusters: Clusters = ()) -> Score:
        """(sum, count) of each row -> exp(sum of sums over sum of counts)."""
        return ratio_of_sums(self.name, [s for s, _ in pairs], [c for _, c in pairs], math.exp, clusters)
