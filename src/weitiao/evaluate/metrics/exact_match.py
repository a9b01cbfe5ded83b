"""Share of answers that are the reference, word for word (letter case, width and spaces do not count).

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1, without its dropping of articles and punctuation.
"""

from typing import ClassVar

from weitiao.core.example import plain
from weitiao.core.registry import Part
from weitiao.core.score import Score, proportion


class ExactMatch(Part):
    """Share of freely written answers that are the reference."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, str]]) -> Score:
        """(written, reference) of each row."""
        return proportion(self.name, sum(plain(said) == plain(wanted) for said, wanted in pairs), len(pairs))
