"""Character error rate: how many characters must be changed, over how many there are.

    CER = (substitutions + deletions + insertions) / characters of the references     over all rows together

Case and punctuation do not count, a space between words does (evaluate/errors_made.py). The figure for Chinese.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.error_rate import error_rate, plain_form


class CER(Metric):
    """Character error rate over all rows; lower is better."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row."""
        return error_rate(self.name, pairs, plain_form)
