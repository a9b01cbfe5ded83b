"""Ranks of right documents, from scores by hand."""

import numpy as np

from weitiao.core.example import Pair
from weitiao.core.ranking import Documents, ranks_of_queries, ranks_of_rows

PAIRS = [
    Pair("q", "a", history=("d", "gone", "a")),  # what is right is ranked, even if it was seen
    Pair("r", "b", negatives=("c",)),
    Pair("r", "a"),
]
DOCUMENTS = Documents.of(PAIRS, corpus=["d", "e", "a"])
SCORES = {"q": [0.5, 0.4, 0.3, 0.9, 0.5], "r": [0.5, 0.4, 0.3, 0.9, 0.5]}  # of a, b, c, d, e


def scores_of(row: int) -> np.ndarray:
    return np.array(SCORES[PAIRS[row].text])


def test_documents_once_in_order() -> None:
    assert list(DOCUMENTS.number_of) == ["a", "b", "c", "d", "e"]
    assert DOCUMENTS.right == {"q": {0}, "r": {0, 1}}


def test_ranks_of_rows() -> None:
    """Row 0: d was seen, e ties before a. Rows of r: the other right document does not count."""
    assert ranks_of_rows(PAIRS, DOCUMENTS, scores_of) == [(2, 5), (3, 5), (3, 5)]


def test_ranks_of_queries() -> None:
    assert ranks_of_queries(PAIRS, DOCUMENTS, scores_of) == [([2], 5), ([3, 4], 5)]


def test_scores_unchanged() -> None:
    kept = np.array([0.5, 0.4, 0.3, 0.9, 0.5])
    ranks_of_rows(PAIRS, DOCUMENTS, lambda row: kept)
    assert kept.tolist() == [0.5, 0.4, 0.3, 0.9, 0.5]
