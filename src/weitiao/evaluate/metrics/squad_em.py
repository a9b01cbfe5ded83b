"""Share of extracted answers that match a reference, by SQuAD's rules (Chinese: CMRC 2018); see evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.squad import best_match, exact_match


class SquadEM(RowMetric):
    """Share of answers that match a reference, ignoring case, punctuation and articles."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[str, Sequence[str] | str]]) -> list[float]:
        """(predicted, all references; none: the question has no answer) of each row -> 1 where one matches."""
        return [best_match(exact_match, predicted, references) for predicted, references in pairs]
