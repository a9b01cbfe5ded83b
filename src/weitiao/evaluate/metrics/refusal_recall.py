"""Of the questions out of scope, the share that gets the fixed answer in the row's column `refusal`."""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.refusals import refused


class RefusalRecall(Metric):
    """Share of questions out of scope that get the fixed answer."""

    reads: ClassVar[Reads] = "refusal"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, the fixed answer or "") of each row."""
        return refused(self.name, pairs, clusters, out_of_scope=True)
