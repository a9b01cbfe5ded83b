"""Rows of one set that are nearly the same as a row of another: held-out rows in the training data, exams in the data."""

from collections.abc import Sequence

import numpy as np

from weitiao.data.duplicates.clusters import SIMILARITY
from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.duplicates.similar_pairs import DistinctRows


def near_duplicates(training: Sequence[str], held_out: Sequence[str]) -> dict[int, int]:
    """held-out row -> the first training row that it equals once folded, or else one that it is a near-duplicate of."""
    return overlap(sign(training, SIMILARITY), sign(held_out, SIMILARITY)) if training and held_out else {}


def overlap(training: Signatures, held_out: Signatures) -> dict[int, int]:
    """The same of rows that are signed already, with one similarity."""
    size = len(training)
    rows = DistinctRows([held_out, training])
    count = len(rows)
    in_held_out, in_training = rows.distinct_of[: len(held_out)], rows.distinct_of[len(held_out) :]
    nearest = np.full(count, size)
    np.minimum.at(nearest, in_training, np.arange(size))
    original, is_held_out = nearest.copy(), np.zeros(count, bool)
    is_held_out[in_held_out] = True
    equal = original < size
    for pair in rows.similar_pairs():
        for a, b in (pair, pair[::-1]):
            requested = is_held_out[a] & ~equal[a]
            np.minimum.at(nearest, a[requested], original[b[requested]])
    return {i: int(j) for i, j in enumerate(nearest[in_held_out]) if j < size}
