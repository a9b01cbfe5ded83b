"""Share of answers that are the reference, word for word (letter case, width and spaces do not count).

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1, without its dropping of articles and punctuation.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.example import plain
from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion


class ExactMatch(Metric):
    """Share of freely written answers that are the reference."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row; each a string, or the classes that hold."""
        return proportion(self.name, sum(_plain(said) == _plain(wanted) for said, wanted in pairs), len(pairs))


def _plain(said: str | Sequence[str]) -> str:
    return plain(said if isinstance(said, str) else ", ".join(said))
