"""Word overlap of an extracted answer with the best reference, by SQuAD's rules (Chinese: CMRC 2018); evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.squad import best_match, word_f1


class SquadF1(RowMetric):
    """Mean word F1 of the answer and its best reference."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[str, Sequence[str] | str]]) -> list[float]:
        """(predicted, all references; none: the question has no answer) of each row."""
        return [best_match(word_f1, predicted, references) for predicted, references in pairs]
