"""Macro-F1 over the answers that occur as references: each class counts alike, however rare.

van Rijsbergen 1979, ch. 7: F1 = 2 p r / (p + r); macro: the mean over classes. Freely written answers that are no
class count as misses. Computed by scikit-learn's definition with zero_division=0.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.example import plain
from weitiao.core.registry import Part
from weitiao.core.score import Score, bootstrapped


class F1(Part):
    """Macro-F1 of freely written answers."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[str, str]]) -> Score:
        """(written, reference) of each row."""
        return bootstrapped(self.name, [(plain(said), plain(wanted)) for said, wanted in pairs], macro_f1, draws=500)


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean F1 over the classes among the references."""
    hits = Counter(said for said, wanted in pairs if said == wanted)
    said, wanted = Counter(s for s, _ in pairs), Counter(w for _, w in pairs)
    return sum(2 * hits[c] / (said[c] + wanted[c]) for c in wanted) / len(wanted)
