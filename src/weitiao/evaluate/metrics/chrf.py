"""chrF: how many runs of one to six characters are the reference's; good for languages without spaces, too.

Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation", eq. 1, as sacreBLEU counts it. From 0 to 100.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.sacrebleu_score import corpus_score


class ChrF(Metric):
    """chrF over all rows, by sacreBLEU."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row."""
        return corpus_score(self.name, pairs)
