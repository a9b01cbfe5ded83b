"""Ranks of the right documents of queries among all documents, from any scores: of a model, or of a baseline without one.

Documents with the same text are one. What a row has `seen` is not ranked for it; a document that has the same score as the
right one ranks before it. The whole corpus is ranked, never a sample of it, which can turn an order of systems around
(Krichene & Rendle 2020, "On Sampled Metrics for Item Recommendation").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.example import Pair

ScoresOf = Callable[[int], np.ndarray]
"""The number of a row -> the scores [documents] of all documents for its query."""


@dataclass(frozen=True)
class Documents:
    """The different documents of an evaluation."""

    number_of: dict[str, int]
    """Text -> its number."""
    right: dict[str, set[int]]
    """Query -> its right documents."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], corpus: Sequence[str] = ()) -> "Documents":
        """All documents of rows, and further ones."""
        texts = [text for x in pairs for text in (x.other, *x.negatives)]
        number_of = {text: i for i, text in enumerate(dict.fromkeys([*texts, *corpus]))}
        right: dict[str, set[int]] = {}
        for x in pairs:
            right.setdefault(x.text, set()).add(number_of[x.other])
        return cls(number_of, right)

    def hidden(self, pair: Pair) -> list[int]:
        """Those that a row has seen; never a right one."""
        return sorted({self.number_of[x] for x in pair.history if x in self.number_of} - self.right[pair.text])


def ranks_of_rows(pairs: Sequence[Pair], documents: Documents, scores_of: ScoresOf) -> list[tuple[int, int]]:
    """(rank of the row's document from 1, number of documents) of each row."""
    ranks = []
    for row, x in enumerate(pairs):
        scores, own = np.array(scores_of(row)), documents.number_of[x.other]
        scores[[*documents.hidden(x), *(documents.right[x.text] - {own})]] = -np.inf  # another right answer is no mistake
        ranks.append((int((scores >= scores[own]).sum()), len(documents.number_of)))
    return ranks


def ranks_of_queries(pairs: Sequence[Pair], documents: Documents, scores_of: ScoresOf) -> list[tuple[Sequence[int], int]]:
    """(ranks of all its right documents from 1, number of documents) of each different query, in the order of the rows."""
    ranks: list[tuple[Sequence[int], int]] = []
    for text, row in {x.text: row for row, x in enumerate(pairs)}.items():
        is_right = np.zeros(len(documents.number_of), bool)
        is_right[list(documents.right[text])] = True
        scores = np.array(scores_of(row))
        scores[documents.hidden(pairs[row])] = -np.inf
        order = np.lexsort((is_right, -scores))
        ranks.append(((1 + np.flatnonzero(is_right[order])).tolist(), len(documents.number_of)))
    return ranks
