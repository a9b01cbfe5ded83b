"""Character error rate: edits per reference character. The usual metric for Chinese speech.

    CER = (substitutions + deletions + insertions) / characters of the references     summed over all rows

Case and punctuation are ignored, a space between words counts (evaluate/error_rate.py).
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.error_rate import error_rate, normalize_text


class CER(Metric):
    """Character error rate over all rows; lower is better."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row."""
        return error_rate(self.name, pairs, normalize_text, clusters)
