"""Share of masked tokens whose most probable prediction is the original token.

Devlin et al. 2019, arXiv 1810.04805, appendix C.2. Held-out rows get the same masks every time. The interval is a bootstrap
over rows, because the tokens of one row are not independent.
"""

from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, as_fraction, ratio_of_sums


class MaskedAccuracy(Metric):
    """Share of masked tokens that are recovered."""

    reads: ClassVar[Reads] = "choices"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[int, int]], clusters: Clusters = ()) -> Score:
        """(recovered, masked) of each row."""
        correct, masked = [x for x, _ in pairs], [x for _, x in pairs]
        return as_fraction(ratio_of_sums(self.name, correct, masked, clusters=clusters))
