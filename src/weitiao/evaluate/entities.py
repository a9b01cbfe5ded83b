"""Entities that were found, that there are, and that are both: what the three entity metrics are made of.

Tjong Kim Sang & De Meulder 2003, sec. 2.3: an entity is right if its first word, its last word and its kind are. What is
an entity in a row of tags is said by seqeval (Nakayama 2018), so that figures are those of the field.
"""

from collections.abc import Callable, Sequence

import numpy as np

from weitiao.core.score import Score, of_share, ratio_of_sums

Counts = tuple[int, int, int]  # both, found, there


def count(said: Sequence[str], right: Sequence[str]) -> Counts:
    """Of one row of tags."""
    from seqeval.metrics.sequence_labeling import get_entities  # here, as it brings scikit-learn, which is slow to load

    found, there = set(get_entities(list(said))), set(get_entities(list(right)))
    return len(found & there), len(found), len(there)


def score(name: str, pairs: Sequence[tuple[Sequence[str], Sequence[str]]], parts: Callable[..., tuple]) -> Score:
    """A ratio of sums over rows, with a bootstrap interval over rows.

    Args:
        pairs: (predicted tags, right tags) of each row.
        parts: (both, found, there), each [rows] -> what is above the line, what is below.
    """
    above, below = parts(*np.array([count(*pair) for pair in pairs], float).reshape(-1, 3).T)
    return of_share(ratio_of_sums(name, above.tolist(), below.tolist()))
