"""Rows that are there several times, the same or nearly the same."""

from typing import Any

import numpy as np

from weitiao.data.duplicates.clusters import SIMILARITY, Clusters
from weitiao.data.inspection.occurrences import Occurrences

SHOWN_CLUSTERS, SHOWN_PAIRS, SHOWN_ROWS = 12, 3, 4  # clusters, clusters of two equal rows, rows of a cluster


def repetition(clusters: Clusters, label_ids: np.ndarray) -> dict[str, Any]:
    """Duplicates as `weitiao data clean --deduplicate` counts them, and the largest clusters.

    A row that has no earlier copy, and whose first similar row has another label, is no duplicate but a contradiction, and
    counted apart.

    Args:
        label_ids: (rows,) equal where what is learnt besides the texts is equal.

    Returns:
        {exact, near, other_label: Occurrences, clusters: [{rows, exact, examples}], capped, similarity}
    """
    rows = np.arange(len(clusters.first))
    is_later, same_label = clusters.first != rows, label_ids == label_ids[clusters.first]
    exact = _copies(clusters.first_equal, label_ids)
    near = is_later & ~exact & same_label
    return {
        "exact": Occurrences.of(np.flatnonzero(exact)),
        "near": Occurrences.of(np.flatnonzero(near)),
        "other_label": Occurrences.of(np.flatnonzero(is_later & ~exact & ~clusters.equals_first & ~same_label)),
        "clusters": list(_largest(clusters, is_later)),
        "capped": clusters.capped,
        "similarity": SIMILARITY,
    }


def _copies(first_equal: np.ndarray, label_ids: np.ndarray) -> np.ndarray:
    """(rows,) bool: an earlier row has the same text and the same label, whatever row comes first in their cluster."""
    pairs = np.stack([first_equal, label_ids], axis=1)
    is_copy = np.ones(len(pairs), bool)
    is_copy[np.unique(pairs, axis=0, return_index=True)[1]] = False
    return is_copy


def _largest(clusters: Clusters, is_later: np.ndarray) -> list[dict[str, Any]]:
    """The largest clusters; of clusters of one size, those with differences to read; few of mere pairs of copies."""
    count = len(clusters.first)
    sizes = np.bincount(clusters.first[is_later], minlength=count)
    differing = np.bincount(clusters.first[is_later & ~clusters.equals_first], minlength=count)
    firsts = np.flatnonzero(sizes)
    order = firsts[np.lexsort((firsts, differing[firsts] == 0, -sizes[firsts]))]
    chosen = order[:SHOWN_CLUSTERS]
    is_pair = (sizes[chosen] == 1) & (differing[chosen] == 0)
    largest = []
    for first in chosen[~is_pair | (np.cumsum(is_pair) <= SHOWN_PAIRS)].tolist():
        other = np.flatnonzero(is_later & (clusters.first == first) & ~clusters.equals_first)
        examples = [first, *other[: SHOWN_ROWS - 1].tolist()]
        largest.append({"rows": int(sizes[first]) + 1, "exact": int(sizes[first] - differing[first]), "examples": examples})
    return largest
