"""Share of answers equal to the reference (letter case, character width and spaces are ignored).

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1, without the removal of articles and punctuation. Predicted classes are
compared to the letter, and so are answers of a closed set that differ in nothing else: us is not US where both are answers.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.eval_set import closed_set
from weitiao.core.example import plain
from weitiao.core.metric import Reads, RowMetric


class ExactMatch(RowMetric):
    """Share of generated answers that equal the reference."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row, each a string, or the predicted classes -> 1 where they are equal."""
        answers = set(closed_set([reference for _, reference in pairs if isinstance(reference, str)]))
        return [float(_equal(answer, reference, answers)) for answer, reference in pairs]


def _equal(answer: str | Sequence[str], reference: str | Sequence[str], answers: set[str]) -> bool:
    """Whether an answer is the reference, and not, to the letter, another one of a closed set of answers."""
    if not isinstance(answer, str) or not isinstance(reference, str):
        return set(answer) == set(reference)
    return answer == reference or (plain(answer) == plain(reference) and answer not in answers)
