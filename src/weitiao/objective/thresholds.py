"""Decision thresholds that are chosen on validation rows after training."""

from collections.abc import Sequence


def best_threshold(scored: Sequence[tuple[float, bool]], default: float = 0.5) -> float:
    """The threshold with the best F1, half-way between two probabilities; `default` where no row is positive.

    Args:
        scored: (probability, whether the row is positive).

    >>> best_threshold([(0.9, True), (0.4, True), (0.3, False), (0.1, False)])
    0.35
    """
    ranked, num_positive = sorted(scored, reverse=True), sum(positive for _, positive in scored)
    best, threshold, hits = 0.0, default, 0
    for i, (p, positive) in enumerate(ranked, 1):
        hits += positive
        next_p = ranked[i][0] if i < len(ranked) else 0.0
        f1 = 2 * hits / (i + num_positive)
        if next_p < p and f1 > best:
            best, threshold = f1, (p + next_p) / 2
    return threshold
