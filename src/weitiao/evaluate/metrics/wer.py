"""Word error rate: how many words must be changed, over how many there are.

    WER = (substitutions + deletions + insertions) / words of the references          over all rows together

Case and punctuation do not count, numbers count as they are written; each Han character is a word: errors_made.py.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.error_rate import error_rate, words_of


class WER(Metric):
    """Word error rate over all rows; lower is better."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row."""
        return error_rate(self.name, pairs, words_of)
