"""Of the questions in scope, the share that gets the fixed answer that is meant for questions out of scope."""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.refusals import refused


class OverRefusal(Metric):
    """Share of questions in scope that get the fixed answer for those out of scope."""

    reads: ClassVar[Reads] = "refusal"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, the fixed answer or "") of each row."""
        return refused(self.name, pairs, clusters, out_of_scope=False)
