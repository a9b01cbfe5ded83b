"""ROUGE-L: how much of the reference stands in what was written, in the same order.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sec. 3.1, eq. 2 to 4, with p and r counting alike:

    l = length of the longest common subsequence of words        p = l / said     r = l / right     F = 2 p r / (p + r)

Small letters; words are letters and digits, and each Han character by itself. The figure is the mean over rows.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, bootstrapped, of_share
from weitiao.evaluate.squad import HAN


class RougeL(Metric):
    """The longest common run of words, gaps allowed, as F1; the mean over rows."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row."""
        each = [overlap(words(str(said)), words(str(wanted))) for said, wanted in pairs]
        return of_share(bootstrapped(self.name, each, lambda some: sum(some) / len(some)))


def words(text: str) -> list[str]:
    """What counts.

    >>> words("The cat, 2 dogs: 你好")
    ['the', 'cat', '2', 'dogs', '你', '好']
    """
    return re.findall(rf"{HAN}|[^\W_]+?(?={HAN})|[^\W_]+", text.lower())


def overlap(said: Sequence[str], right: Sequence[str]) -> float:
    """F of the longest common subsequence.

    >>> round(overlap("police kill the gunman".split(), "police killed the gunman".split()), 2)
    0.75
    """
    if not said or not right:
        return float(said == right)
    row = [0] * (len(right) + 1)
    for x in said:
        last = 0
        for j, y in enumerate(right, 1):
            last, row[j] = row[j], last + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(said) + len(right))
