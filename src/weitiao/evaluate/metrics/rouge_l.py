"""ROUGE-L: the longest common subsequence of words of the answer and the reference, as F1.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sec. 3.1, eq. 2 to 4, with p and r weighted equally:

    l = length of the longest common subsequence        p = l / predicted     r = l / reference     F = 2 p r / (p + r)

Lower case; a word is a run of letters and digits, or one Han character. The score is the mean over rows.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, as_fraction, bootstrapped
from weitiao.evaluate.squad import HAN


class RougeL(Metric):
    """F1 of the longest common subsequence of words; the mean over rows."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(generated, reference) of each row."""
        scores = [lcs_f1(split_words(str(text)), split_words(str(reference))) for text, reference in pairs]
        return as_fraction(bootstrapped(self.name, scores, lambda rows: sum(rows) / len(rows)))


def split_words(text: str) -> list[str]:
    """The words that are compared.

    >>> split_words("The cat, 2 dogs: 你好")
    ['the', 'cat', '2', 'dogs', '你', '好']
    """
    return re.findall(rf"{HAN}|[^\W_]+?(?={HAN})|[^\W_]+", text.lower())


def lcs_f1(predicted: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence.

    >>> round(lcs_f1("police kill the gunman".split(), "police killed the gunman".split()), 2)
    0.75
    """
    if not predicted or not reference:
        return float(predicted == reference)
    row = [0] * (len(reference) + 1)  # the last row of the dynamic programming table
    for x in predicted:
        diagonal = 0
        for j, y in enumerate(reference, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(predicted) + len(reference))
