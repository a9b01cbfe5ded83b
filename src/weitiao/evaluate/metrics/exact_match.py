"""Share of answers equal to the reference (letter case, character width and spaces are ignored).

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1, without the removal of articles and punctuation.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.example import plain
from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion


class ExactMatch(Metric):
    """Share of generated answers that equal the reference."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        return proportion(
            self.name, sum(_normalized(text) == _normalized(reference) for text, reference in pairs), len(pairs)
        )


def _normalized(answer: str | Sequence[str]) -> str:
    return plain(answer if isinstance(answer, str) else ", ".join(answer))
