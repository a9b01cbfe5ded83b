"""chrF: F-score over character n-grams of one to six characters; works for languages without spaces.

Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation", eq. 1, computed by sacreBLEU. From 0 to 100.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.sacrebleu_score import corpus_score


class ChrF(Metric):
    """chrF over all rows, by sacreBLEU."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row."""
        return corpus_score(self.name, pairs, clusters)
