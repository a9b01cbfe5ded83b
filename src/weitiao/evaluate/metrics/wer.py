"""Word error rate: edits per reference word.

    WER = (substitutions + deletions + insertions) / words of the references          summed over all rows

Case and punctuation are ignored, numbers are compared as written, each Han character is a word (evaluate/error_rate.py).
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.error_rate import error_rate, split_words


class WER(Metric):
    """Word error rate over all rows; lower is better."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row."""
        return error_rate(self.name, pairs, split_words, clusters)
