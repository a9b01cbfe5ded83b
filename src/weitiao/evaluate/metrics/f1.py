"""Macro-F1: the mean of every class's F1, so that each class has the same weight, however rare.

van Rijsbergen 1979, ch. 7: F1 = 2 p r / (p + r). Averaged are all classes that occur, as a reference or as an answer, as in
scikit-learn's f1_score(average="macro", zero_division=0): a class that is only answered, and never right, counts with 0.
A generated answer that is no class is such a class. Classes are compared to the letter.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.score import Clusters, Score, as_fraction, bootstrapped


class F1(Metric):
    """Macro-F1 of generated answers or predicted classes."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row; each a string, or the predicted classes."""
        classes = [(_classes(answer), _classes(reference)) for answer, reference in pairs]
        score = as_fraction(bootstrapped(self.name, classes, macro_f1, draws=500, clusters=clusters))
        references = {c for _, reference in classes for c in reference}
        if answered := {c for predicted, _ in classes for c in predicted} - references:
            note = Message(
                "f1 is the mean over {n:,} classes; {answered:,} of them only the model answers, and they count with 0",
                n=len(references | answered),
                answered=len(answered),
            )
            return replace(score, notes=(note,))
        return score


def _classes(answer: str | Sequence[str]) -> set[str]:
    return {answer.strip()} if isinstance(answer, str) else set(answer)


def macro_f1(pairs: Sequence[tuple[set[str], set[str]]]) -> float:
    """Mean F1 over the classes among references and answers."""
    hits = Counter(c for predicted, reference in pairs for c in predicted & reference)
    predicted, reference = Counter(c for p, _ in pairs for c in p), Counter(c for _, r in pairs for c in r)
    classes = predicted | reference
    return sum(2 * hits[c] / (predicted[c] + reference[c]) for c in classes) / max(len(classes), 1)
