"""Rows of one set that are nearly the same as a row of another: held-out rows in the training data, exams in the data."""

from collections.abc import Sequence

import numpy as np

from weitiao.data.duplicates.clusters import SIMILARITY
from weitiao.data.duplicates.signatures import sign
from weitiao.data.duplicates.similar_pairs import DistinctRows


def near_duplicates(training: Sequence[str], held_out: Sequence[str]) -> dict[int, int]:
    """held-out row -> the first training row that it equals once folded, or else one that it is a near-duplicate of."""
    if not training or not held_out:
        return {}
    rows = DistinctRows([sign(held_out, SIMILARITY), sign(training, SIMILARITY)])
    count = len(rows)
    in_held_out, in_training = rows.distinct_of[: len(held_out)], rows.distinct_of[len(held_out) :]
    nearest = np.full(count, len(training))
    np.minimum.at(nearest, in_training, np.arange(len(training)))
    original, is_held_out = nearest.copy(), np.zeros(count, bool)
    is_held_out[in_held_out] = True
    equal = original < len(training)
    for pair in rows.similar_pairs():
        for a, b in (pair, pair[::-1]):
            requested = is_held_out[a] & ~equal[a]
            np.minimum.at(nearest, a[requested], original[b[requested]])
    return {i: int(j) for i, j in enumerate(nearest[in_held_out]) if j < len(training)}
