"""Counts of correct, predicted and reference entities, which the three entity metrics share.

Tjong Kim Sang & De Meulder 2003, sec. 2.3: an entity is correct if its first word, its last word and its type are. seqeval
(Nakayama 2018) decides what an entity is in a row of tags, so scores are comparable with the literature.
"""

from collections.abc import Callable, Sequence

import numpy as np

from weitiao.core.score import Clusters, Score, as_fraction, ratio_of_sums

Counts = tuple[int, int, int]  # both, found, there


def count(predicted: Sequence[str], reference: Sequence[str]) -> Counts:
    """(correct, predicted, reference) entities of one row of tags."""
    from seqeval.metrics.sequence_labeling import get_entities  # imported late: it loads scikit-learn, which is slow

    candidates, references = set(get_entities(list(predicted))), set(get_entities(list(reference)))
    return len(candidates & references), len(candidates), len(references)


def score(
    name: str, pairs: Sequence[tuple[Sequence[str], Sequence[str]]], clusters: Clusters, parts: Callable[..., tuple]
) -> Score:
    """A ratio of sums over rows, with a bootstrap interval over rows.

    Args:
        pairs: (predicted tags, reference tags) of each row.
        parts: (correct, predicted, reference), each [rows] -> (numerators, denominators).
    """
    numerators, denominators = parts(*np.array([count(*pair) for pair in pairs], float).reshape(-1, 3).T)
    return as_fraction(ratio_of_sums(name, numerators, denominators, clusters=clusters))
