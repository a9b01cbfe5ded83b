"""Share of extracted answers that match a reference, by SQuAD's rules (Chinese: CMRC 2018); see evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion
from weitiao.evaluate.squad import best_match, exact_match


class SquadEM(Metric):
    """Share of answers that match a reference, ignoring case, punctuation and articles."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, Sequence[str] | str]]) -> Score:
        """(predicted, all references; none: the question has no answer) of each row; Wilson's interval."""
        return proportion(
            self.name,
            int(sum(best_match(exact_match, predicted, references) for predicted, references in pairs)),
            len(pairs),
        )
