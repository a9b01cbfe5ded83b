"""Macro-F1 over the classes that occur as references: every class has the same weight, however rare.

van Rijsbergen 1979, ch. 7: F1 = 2 p r / (p + r); macro: the mean over classes. Generated answers that are not
a class count as misses. scikit-learn's definition with zero_division=0.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from weitiao.core.example import plain
from weitiao.core.metric import Metric
from weitiao.core.score import Score, as_fraction, bootstrapped


class F1(Metric):
    """Macro-F1 of generated answers or predicted classes."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        classes = [(_classes(answer), _classes(reference)) for answer, reference in pairs]
        return as_fraction(bootstrapped(self.name, classes, macro_f1, draws=500))


def _classes(answer: str | Sequence[str]) -> set[str]:
    return {plain(answer)} if isinstance(answer, str) else {plain(x) for x in answer}


def macro_f1(pairs: Sequence[tuple[set[str], set[str]]]) -> float:
    """Mean F1 over the classes among the references."""
    hits = Counter(c for predicted, reference in pairs for c in predicted & reference)
    predicted, reference = Counter(c for p, _ in pairs for c in p), Counter(c for _, r in pairs for c in r)
    return sum(2 * hits[c] / (predicted[c] + reference[c]) for c in reference) / max(len(reference), 1)
