"""ROUGE-2: pairs of adjacent words that the answer and the reference share, as F1; the mean over rows.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sec. 2, with precision and recall weighted equally. On
ASCII text this is rouge-score's rouge2, without its stemmer; in scripts without spaces each character is a word
(evaluate/words.py).
"""

from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.words import ngram_f1, split_words


class Rouge2(RowMetric):
    """F1 of the pairs of adjacent words that both have; the mean over rows."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row."""
        return [ngram_f1(split_words(str(text)), split_words(str(reference)), 2) for text, reference in pairs]
