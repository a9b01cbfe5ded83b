"""ROUGE-L: the longest common subsequence of words of the answer and the reference, as F1.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sec. 3.1, eq. 2 to 4, with p and r weighted equally:

    l = length of the longest common subsequence        p = l / predicted     r = l / reference     F = 2 p r / (p + r)

Lower case; a word is a run of letters, digits and their marks. Scripts that are written without spaces (Han, kana, Thai,
Lao, Khmer, Burmese) have a word for each character. On ASCII text this is rouge-score's rougeL, without its stemmer;
rouge-score drops all other letters, so that café is caf and 你好 nothing. The score is the mean over rows.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.words import split_words


class RougeL(RowMetric):
    """F1 of the longest common subsequence of words; the mean over rows."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row."""
        return [lcs_f1(split_words(str(text)), split_words(str(reference))) for text, reference in pairs]


def lcs_f1(predicted: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence.

    >>> round(lcs_f1("police kill the gunman".split(), "police killed the gunman".split()), 2)
    0.75
    """
    if not predicted or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)  # the last row of the dynamic programming table
    for x in predicted:
        diagonal = 0
        for j, y in enumerate(reference, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(predicted) + len(reference))
