"""Distinct-2: different pairs of adjacent words of all answers together, divided by their number.

Li et al. 2016, arXiv 1510.03055, sec. 5.3. Low: the model says the same again and again. It falls with the number of
words, so compare models on the same rows. Words: evaluate/words.py. A bootstrap would count rows twice, which lowers it:
the interval is a jackknife.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, jackknifed
from weitiao.evaluate.words import distinct_share, ngrams, split_words


class Distinct2(Metric):
    """Share of different pairs of adjacent words in all answers."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; references are not read."""
        counts = [ngrams(split_words(str(text)), 2) for text, _ in pairs]
        return jackknifed(self.name, counts, distinct_share, clusters=clusters)
