"""Micro-F1 over entities: 2 x correct / (predicted + reference). Correct: first word, last word and type all match.

Tjong Kim Sang & De Meulder 2003, sec. 2.3; the same figure as seqeval's f1_score.
"""

from collections.abc import Sequence
from typing import ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.entities import score


class EntityF1(Metric):
    """Micro-F1 over whole entities."""

    reads: ClassVar[Reads] = "answers"
    compares_texts: ClassVar[bool] = False

    def score(self, pairs: list[tuple[Sequence[str], Sequence[str]]], clusters: Clusters = ()) -> Score:
        """(predicted tags, reference tags) of each row."""
        return score(self.name, pairs, clusters, lambda correct, predicted, reference: (2 * correct, predicted + reference))
