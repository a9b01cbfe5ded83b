"""Scores of probabilities: how well they rank (AUROC, average precision), and whether they are right (calibration)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weitiao.core.messages import Message, joined
from weitiao.core.score import Clusters, Score, bootstrapped_by_weights, not_measured
from weitiao.evaluate.class_counts import classes_of

NUM_BINS = 15  # Guo et al. 2017
SHOWN_CLASSES = 5
Pairs = Sequence[tuple[Mapping[str, float], Any]]
OneClass = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(scores [n], whether the class applies [n], how often each row counts [draws, n]) -> [draws]; NaN: undefined."""


def mean_over_classes(name: str, pairs: Pairs, clusters: Clusters, of_class: OneClass) -> Score:
    """The mean over classes of a score of each class against all others.

    A class that no row has, or that every row has, has none: it is left out, and named.

    Args:
        pairs: (class -> probability, reference) of each row.
    """
    if not pairs:
        return not_measured(name)
    classes = list(dict.fromkeys(c for p, _ in pairs for c in p))
    applies = {c: np.array([c in classes_of(reference) for _, reference in pairs]) for c in classes}
    scored = [c for c in classes if 0 < applies[c].sum() < len(pairs)]
    if not scored:
        reason = Message("{metric} is undefined: all {n:,} rows have the same class", metric=name, n=len(pairs))
        return replace(not_measured(name), notes=(reason,))
    scores = {c: np.array([p.get(c, 0.0) for p, _ in pairs]) for c in scored}

    def statistic(times: np.ndarray) -> np.ndarray:
        values = np.stack([of_class(scores[c], applies[c], times) for c in scored])  # [C, draws]
        defined = ~np.isnan(values)
        total = np.where(defined, values, 0).sum(0)
        return np.where(defined.any(0), total / np.maximum(defined.sum(0), 1), np.nan)

    score = bootstrapped_by_weights(name, len(pairs), statistic, clusters=clusters)
    if not (missing := [c for c in classes if c not in scored]):
        return score
    shown = joined(", ", [Message("{name}", name=c) for c in missing[:SHOWN_CLASSES]])
    note = Message(
        "{metric} is undefined for {n:,} of {total:,} classes, which no row has, and is the mean over the others: {names}",
        metric=name,
        n=len(missing),
        total=len(classes),
        names=shown,
    )
    return replace(score, notes=(note,))


def _by_score(scores: np.ndarray, applies: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the class and other rows at each different score, highest first: [draws, scores] each."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    yes, no = (np.add.reduceat((times * which)[:, order], starts, axis=1) for which in (applies, ~applies))
    return yes, no


def auroc(scores: np.ndarray, applies: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The probability that a row of the class has a higher score than another row; half of the equal ones (Hanley & McNeil
    1982)."""
    yes, no = _by_score(scores, applies, times)
    above = yes.cumsum(1) - yes / 2
    products = yes.sum(1) * no.sum(1)
    return np.where(products > 0, (above * no).sum(1) / np.maximum(products, 1), np.nan)


def average_precision(scores: np.ndarray, applies: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Sum over thresholds of (recall - the recall before it) x precision: no interpolation."""
    yes, no = _by_score(scores, applies, times)
    found, all_found = yes.cumsum(1), yes.cumsum(1) + no.cumsum(1)
    total = yes.sum(1)
    precision = found / np.maximum(all_found, 1)
    return np.where(total > 0, (yes * precision).sum(1) / np.maximum(total, 1), np.nan)


def confidences(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(probability of the chosen class, whether it is right), [n] each; where several classes may apply, of each class and
    whether it applies."""
    several = any(abs(sum(p.values()) - 1) > 1e-3 for p, _ in pairs)
    if several:
        rows = [(q, c in classes_of(reference)) for p, reference in pairs for c, q in p.items()]
    else:
        best = [(max(p, key=lambda c: p[c]), p, reference) for p, reference in pairs]
        rows = [(p[c], {c} == classes_of(reference)) for c, p, reference in best]
    return np.array([p for p, _ in rows], float), np.array([float(x) for _, x in rows])


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """[n]: the bin of each probability, of NUM_BINS equally wide ones; a bin has its upper edge."""
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence)


def reliability(pairs: Pairs) -> list[dict[str, float]]:
    """A reliability diagram: of each bin with rows, from where to where, rows, mean confidence, share that is right."""
    if not pairs:
        return []
    confidence, right = confidences(pairs)
    bins = bins_of(confidence)
    return [
        {
            "from": i / NUM_BINS,
            "to": (i + 1) / NUM_BINS,
            "n": int((bins == i).sum()),
            "confidence": float(confidence[bins == i].mean()),
            "accuracy": float(right[bins == i].mean()),
        }
        for i in range(NUM_BINS)
        if (bins == i).any()
    ]
