"""Precision, recall and F1 of classes: counts of right, predicted and reference classes, averaged in three ways.

    p = right / predicted     r = right / reference     F1 = 2 p r / (p + r) = 2 right / (predicted + reference)

    micro      of the counts of all classes together
    macro      mean over the classes that occur, as a reference or as an answer: each has the same weight, however rare
    weighted   the same, each class weighted by the number of its references

van Rijsbergen 1979, ch. 7; Sokolova & Lapalme 2009, table 3. The same figures as scikit-learn's precision_score,
recall_score and f1_score with zero_division=0: a class that is only answered counts with 0, and a generated answer that is
no class is such a class. Classes are compared to the letter.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from weitiao.core.messages import Message
from weitiao.core.score import Clusters, Score, as_fraction, bootstrapped_by_weights

Kind = Literal["precision", "recall", "f1"]
Average = Literal["micro", "macro", "weighted"]


def classes_of(answer: Any) -> set[str]:
    """The classes of a row's answer or reference; of a text, the text."""
    return {answer.strip()} if isinstance(answer, str) else set(answer)


def averaged_score(name: str, pairs: Sequence[tuple[Any, Any]], clusters: Clusters, kind: Kind, average: Average) -> Score:
    """One of the nine scores, with a bootstrap over rows.

    Args:
        pairs: (answer, reference) of each row; each a string, or the classes.
    """
    from scipy.sparse import csr_array  # imported late: it is slow to load

    rows = [(classes_of(answer), classes_of(reference)) for answer, reference in pairs]
    numbers = {c: i for i, c in enumerate(dict.fromkeys(c for row in rows for side in row for c in sorted(side)))}

    def counts(sides: Sequence[set[str]]) -> Any:  # [n, C]
        where = [(i, numbers[c]) for i, side in enumerate(sides) for c in side]
        i, j = zip(*where) if where else ((), ())
        return csr_array((np.ones(len(where)), (np.array(i, int), np.array(j, int))), shape=(len(rows), len(numbers)))

    right = counts([predicted & reference for predicted, reference in rows])
    predicted, reference = counts([p for p, _ in rows]), counts([r for _, r in rows])

    def statistic(times: np.ndarray) -> np.ndarray:
        return averaged(times @ right, times @ predicted, times @ reference, kind, average)

    score = as_fraction(bootstrapped_by_weights(name, len(rows), statistic, clusters=clusters))
    references = {c for _, side in rows for c in side}
    if average != "macro" or not (answered := numbers.keys() - references):
        return score
    note = Message(
        "{metric} is the mean over {n:,} classes; {answered:,} of them only the model answers, and they count with 0",
        metric=name,
        n=len(numbers),
        answered=len(answered),
    )
    return replace(score, notes=(note,))


def averaged(right: np.ndarray, predicted: np.ndarray, reference: np.ndarray, kind: Kind, average: Average) -> np.ndarray:
    """Counts of each class, [..., C] -> [...]."""
    if average == "micro":
        right, predicted, reference = (x.sum(-1, keepdims=True) for x in (right, predicted, reference))
    below = {"precision": predicted, "recall": reference, "f1": (predicted + reference) / 2}[kind]
    values = right / np.maximum(below, 1e-12)  # where it is 0, `right` is
    if average == "micro":
        return values[..., 0]
    weights = reference if average == "weighted" else (predicted + reference > 0).astype(float)
    return (values * weights).sum(-1) / np.maximum(weights.sum(-1), 1e-12)
