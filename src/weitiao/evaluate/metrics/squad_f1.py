"""How much an answer found in a text has in common with the right one, by SQuAD's rules (Chinese: CMRC 2018's);
evaluate/squad.py."""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, bootstrapped, of_share
from weitiao.evaluate.squad import best, overlap


class SquadF1(Metric):
    """Mean F1 over the words of what was said and the best fitting right answer."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, Sequence[str] | str]]) -> Score:
        """(said, all right answers; none: there is no answer) of each row; a bootstrap over rows."""
        return of_share(bootstrapped(self.name, [best(overlap, said, right) for said, right in pairs], _mean))


def _mean(figures: Sequence[float]) -> float:
    return sum(figures) / len(figures)
