"""Loss per supervised token, in nats, over held-out rows; the interval is a bootstrap over rows."""

from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, ratio_of_sums


class LossMetric(Metric):
    """Mean negative log-probability per supervised token."""

    reads: ClassVar[Reads] = "row_losses"

    def score(self, pairs: list[tuple[float, float]], clusters: Clusters = ()) -> Score:
        """(sum, count) of each row -> sum of sums over sum of counts."""
        return ratio_of_sums(self.name, [s for s, _ in pairs], [c for _, c in pairs], clusters=clusters)
