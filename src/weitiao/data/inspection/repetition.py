"""Rows that are there several times, the same or nearly the same."""

from typing import Any

import numpy as np

from weitiao.data.duplicates.clusters import SIMILARITY, Clusters
from weitiao.data.inspection.occurrences import Occurrences

SHOWN_CLUSTERS, SHOWN_ROWS = 12, 4


def repetition(clusters: Clusters, label_ids: np.ndarray) -> dict[str, Any]:
    """Duplicates as `weitiao data clean --deduplicate` counts them, and the largest clusters.

    A row whose first similar row has another label is no duplicate but a contradiction, and counted apart.

    Args:
        label_ids: (rows,) equal where what is learnt besides the texts is equal.

    Returns:
        {exact, near, other_label: Occurrences, clusters: [{rows, exact, examples}], capped, similarity}
    """
    rows = np.arange(len(clusters.first))
    is_later, same_label = clusters.first != rows, label_ids == label_ids[clusters.first]
    exact = is_later & clusters.equals_first & same_label
    near = is_later & ~clusters.equals_first & same_label
    return {
        "exact": Occurrences.of(np.flatnonzero(exact)),
        "near": Occurrences.of(np.flatnonzero(near)),
        "other_label": Occurrences.of(np.flatnonzero(is_later & ~clusters.equals_first & ~same_label)),
        "clusters": list(_largest(clusters, is_later)),
        "capped": clusters.capped,
        "similarity": SIMILARITY,
    }


def _largest(clusters: Clusters, is_later: np.ndarray) -> list[dict[str, Any]]:
    sizes = np.bincount(clusters.first[is_later], minlength=len(clusters.first))
    largest = np.argsort(-sizes, kind="stable")[:SHOWN_CLUSTERS]
    largest_clusters = []
    for first in largest[sizes[largest] > 0]:
        later = np.flatnonzero(is_later & (clusters.first == first))
        exact = int(clusters.equals_first[later].sum())
        differing = later[~clusters.equals_first[later]]  # more to see than copies
        examples = [int(first), *(int(x) for x in differing[: SHOWN_ROWS - 1])]
        largest_clusters.append({"rows": len(later) + 1, "exact": exact, "examples": examples})
    return largest_clusters
