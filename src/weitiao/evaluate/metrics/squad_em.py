"""Share of answers found in a text that are a right one, by SQuAD's rules (Chinese: CMRC 2018's); evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion
from weitiao.evaluate.squad import best, exact


class SquadEM(Metric):
    """Share of answers that are a right one, but for case, punctuation and articles."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, Sequence[str] | str]]) -> Score:
        """(said, all right answers; none: there is no answer) of each row; Wilson's interval."""
        return proportion(self.name, int(sum(best(exact, said, right) for said, right in pairs)), len(pairs))
