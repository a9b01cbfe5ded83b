"""Clusters of equal and nearly equal rows: the connected components of all similar pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.duplicates.similar_pairs import DistinctRows

SIMILARITY = 0.8


@dataclass(frozen=True)
class Clusters:
    """Which rows are duplicates of which."""

    first: np.ndarray
    """(rows,) int64: the first row of each row's cluster; its own index for a row without an earlier duplicate."""
    equals_first: np.ndarray
    """(rows,) bool: the row and the first row of its cluster are equal once folded."""
    first_equal: np.ndarray
    """(rows,) int64: the first row that is equal once folded; its own index for the first one."""
    capped: int
    """Rows that were not compared with all their candidates, since very many agreed: some duplicates may be left."""

    @property
    def duplicates(self) -> np.ndarray:
        """Indices of the rows that have an earlier duplicate."""
        return np.flatnonzero(self.first != np.arange(len(self.first)))


def find_duplicates(texts: Iterable[str], similarity: float = SIMILARITY) -> Clusters:
    """Find equal and nearly equal texts.

    Letter case, width, spaces, and traditional or simplified characters do not count. A text of fewer characters than one
    n-gram is compared whole.

    Args:
        texts: are read once and not kept.
        similarity: the Jaccard similarity of their sets of n-grams from which two texts are near-duplicates, above 0 to 1;
            see `edited_share`.

    >>> find_duplicates(["你好，世界", "您贵姓", "你好,世界", "您貴姓！"]).first.tolist()
    [0, 1, 0, 3]
    """
    return cluster([sign(texts, similarity)])


def cluster(shards: Sequence[Signatures]) -> Clusters:
    """Find the duplicates among the rows of several shards, as if they were one.

    Args:
        shards: in the order of their rows; a row's index counts from the first shard's first row.

    Raises:
        InvalidValue: they were signed with different similarities.
    """
    rows = DistinctRows(shards)
    components = Components(len(rows))
    for left, right in rows.similar_pairs(components.same):
        components.join(left, right)
    component = components.labels[rows.distinct_of]
    first_of = np.full(len(rows), len(component))
    np.minimum.at(first_of, component, np.arange(len(component)))
    first = first_of[component]
    _, earliest, which = np.unique(rows.distinct_of, return_index=True, return_inverse=True)
    equals_first = rows.distinct_of == rows.distinct_of[first]
    return Clusters(first, equals_first, earliest[which.reshape(-1)], int(rows.capped[rows.distinct_of].sum()))


def edited_share(similarity: float, characters: int) -> float:
    """About which share of the characters may be edited until two texts of equal length are no near-duplicates.

    An edited character changes as many n-grams as an n-gram has characters.

    Args:
        characters: of an n-gram: 2 in Chinese, 5 in English (`ngrams`).

    >>> f"{edited_share(0.8, 2):.0%} of Chinese, {edited_share(0.8, 5):.0%} of English characters"
    '6% of Chinese, 2% of English characters'
    """
    return (1 - similarity) / (1 + similarity) / characters


class Components:
    """Connected components of a graph whose edges come in parts: union-find on arrays."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        """(nodes,) the least node of each node's component."""

    def same(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether the nodes of each pair are in one component."""
        return self.labels[left] == self.labels[right]

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Add edges."""
        while True:
            a, b = self.labels[left], self.labels[right]
            differ = a != b
            if not differ.any():
                return
            left, right, a, b = left[differ], right[differ], a[differ], b[differ]
            np.minimum.at(self.labels, np.maximum(a, b), np.minimum(a, b))
            self._flatten()

    def _flatten(self) -> None:
        """Let every node point to its component's least node."""
        while True:
            labels = self.labels[self.labels]
            if np.array_equal(labels, self.labels):
                return
            self.labels = labels
