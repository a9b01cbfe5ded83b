"""Word overlap of an extracted answer with the best reference, by SQuAD's rules (Chinese: CMRC 2018); evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, as_fraction, bootstrapped
from weitiao.evaluate.squad import best_match, word_f1


class SquadF1(Metric):
    """Mean word F1 of the answer and its best reference."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, Sequence[str] | str]]) -> Score:
        """(predicted, all references; none: the question has no answer) of each row; a bootstrap over rows."""
        scores = [best_match(word_f1, predicted, references) for predicted, references in pairs]
        return as_fraction(bootstrapped(self.name, scores, _mean))


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
