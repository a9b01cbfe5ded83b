"""Share of masked tokens that are recovered: the most probable token is the one that stood there.

Devlin et al. 2019, arXiv 1810.04805, appendix C.2. The masks of held-out rows are the same every time. Rows are what the
interval is made over, for tokens of one row are not independent.
"""

from typing import ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, of_share, ratio_of_sums


class MaskedAccuracy(Metric):
    """Share of masked tokens that are recovered."""

    reads: ClassVar[str] = "choices"

    def score(self, pairs: list[tuple[int, int]]) -> Score:
        """(recovered, masked) of each row."""
        found = ratio_of_sums(self.name, [right for right, _ in pairs], [of for _, of in pairs])
        return of_share(found)
