"""Macro-F1 over the answers that occur as references: each class counts alike, however rare.

van Rijsbergen 1979, ch. 7: F1 = 2 p r / (p + r); macro: the mean over classes. Freely written answers that are no
class count as misses. Computed by scikit-learn's definition with zero_division=0.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.example import plain
from weitiao.core.metric import Metric
from weitiao.core.score import Score, bootstrapped, of_share


class F1(Metric):
    """Macro-F1 of written answers or predicted classes."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row; each a string, or the classes that hold."""
        return of_share(
            bootstrapped(self.name, [(_classes(said), _classes(wanted)) for said, wanted in pairs], macro_f1, draws=500)
        )


def _classes(said: str | Sequence[str]) -> set[str]:
    return {plain(said)} if isinstance(said, str) else {plain(x) for x in said}


def macro_f1(pairs: Sequence[tuple[set[str], set[str]]]) -> float:
    """Mean F1 over the classes among the references."""
    hits = Counter(c for said, wanted in pairs for c in said & wanted)
    said, wanted = Counter(c for s, _ in pairs for c in s), Counter(c for _, w in pairs for c in w)
    return sum(2 * hits[c] / (said[c] + wanted[c]) for c in wanted) / max(len(wanted), 1)
