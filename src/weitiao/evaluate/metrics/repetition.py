"""Repetition (seq-rep-4): share of an answer's sequences of four words that it has said before; the mean over rows.

Welleck et al. 2020, arXiv 1908.04319, sec. 6.1: 1 - different 4-grams / 4-grams. An answer of fewer than four words has 0.
Words: evaluate/words.py. Lower is better.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.words import ngrams, split_words

N = 4


class Repetition(RowMetric):
    """Share of 4-grams that an answer repeats; the mean over rows."""

    reads: ClassVar[Reads] = "answers"
    higher_is_better: ClassVar[bool | None] = False

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row; references are not read."""
        counts = [ngrams(split_words(str(text)), N) for text, _ in pairs]
        return [1 - len(x) / sum(x.values()) if x else 0.0 for x in counts]
