"""Hard negatives: documents that look right for a query and are not, for objectives `embedding` and `rerank`.

Of all documents, by their score for the query (cosines of a model's vectors, or of n-grams), the best that may be used:

    never     a right document of the query or of a nearly equal query; a near-duplicate of one
    not       score > (1 - relative_margin) x score of the right document: probably right as well, only not marked so
              (Moreira et al. 2024, "NV-Retriever: Improving text embedding models with effective hard-negative mining",
              arXiv 2407.15831, sec. 3.1: positive-aware mining, TopK-PercPos)
    skipped   the best `range_min` of the rest

N-grams tell nothing of how near the right document is, so there the margin is not used (as with BM25's best in Karpukhin et
al. 2020, "Dense Passage Retrieval", arXiv 2004.04906, sec. 3.2).

What is missing then (few documents, no n-gram in common) is drawn at random from the documents that may be used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.example import Pair
from weitiao.data.duplicates.clusters import find_duplicates
from weitiao.data.duplicates.folding import folded_texts
from weitiao.data.duplicates.ngrams import ngram_sets

BLOCK = 256  # queries that are scored at a time, against all documents
Scores = Callable[[slice], np.ndarray]
"""Some queries -> their scores with all documents, [queries, documents]."""


@dataclass(frozen=True)
class MiningSettings:
    """Which documents become negatives."""

    num_negatives: int = 1
    """For each row."""
    range_min: int = 0
    """How many of the best to skip."""
    relative_margin: float | None = 0.05
    """How much lower than the right document's score a negative's must be, as a share of it; None: it may be higher."""
    seed: int = 0


@dataclass(frozen=True)
class MinedNegatives:
    """What was found for each pair."""

    negatives: list[tuple[str, ...]]
    random: int
    """Of all of them, those that were drawn at random."""
    too_similar: int
    """Documents that scored too near to the right one, or above it."""
    missing: int
    """Negatives that no document was left for."""


class Candidates:
    """The documents that pairs choose from, and which of them are right for which."""

    def __init__(self, pairs: Sequence[Pair], corpus: Sequence[str] = ()) -> None:
        """
        Args:
            corpus: further documents.
        """
        self.pairs = pairs
        own = (text for x in pairs for text in (x.other, *x.negatives))
        self.texts = list(dict.fromkeys([*own, *corpus]))
        self.queries = list(dict.fromkeys(x.text for x in pairs))
        self._number_of = number_of = {text: i for i, text in enumerate(self.texts)}
        query_of = {text: i for i, text in enumerate(self.queries)}
        self.right = np.array([number_of[x.other] for x in pairs])
        """[pairs] the number of each pair's document."""
        self.query = np.array([query_of[x.text] for x in pairs])
        """[pairs] the number of each pair's query."""
        document_cluster, query_cluster = find_duplicates(self.texts).first, find_duplicates(self.queries).first
        members: dict[int, list[int]] = {}
        for i, cluster in enumerate(document_cluster.tolist()):
            members.setdefault(cluster, []).append(i)
        alike: dict[int, set[int]] = {}
        for query, document in zip(self.query, self.right):
            alike.setdefault(int(query_cluster[query]), set()).add(int(document_cluster[document]))
        self._forbidden = [
            np.array(sorted(i for cluster in alike[int(query_cluster[q])] for i in members[cluster]))
            for q in range(len(self.queries))
        ]

    def negatives_of(self, pair: int) -> list[int]:
        """The documents that a pair has as negatives already."""
        return [self._number_of[text] for text in self.pairs[pair].negatives]

    def forbidden(self, query: int) -> np.ndarray:
        """The documents that are right for a query: marked so, nearly equal to one, or right for nearly the same query."""
        return self._forbidden[query]


def mine_negatives(candidates: Candidates, scores_of: Scores, settings: MiningSettings) -> MinedNegatives:
    """Negatives for each pair.

    Args:
        scores_of: of the candidates' queries and documents.
    """
    pairs_of: dict[int, list[int]] = {}
    for pair, query in enumerate(candidates.query.tolist()):
        pairs_of.setdefault(query, []).append(pair)
    found: list[tuple[str, ...]] = [()] * len(candidates.pairs)
    num_random = too_similar = missing = 0
    random = np.random.default_rng(settings.seed)
    for start in range(0, len(candidates.queries), BLOCK):
        block = np.array(scores_of(slice(start, min(start + BLOCK, len(candidates.queries)))), np.float32)
        for query, scores in enumerate(block, start):
            for pair in pairs_of[query]:
                own = scores.copy()
                own[candidates.forbidden(query)] = -np.inf
                own[candidates.negatives_of(pair)] = -np.inf
                if settings.relative_margin is not None:
                    limit = (1 - settings.relative_margin) * scores[candidates.right[pair]]
                    too_near = own > max(limit, 0)
                    own[too_near] = -np.inf
                    too_similar += int(too_near.sum())
                chosen, drawn = _choose(own, settings, random)
                num_random += drawn
                missing += settings.num_negatives - len(chosen)
                found[pair] = tuple(candidates.texts[i] for i in chosen)
    return MinedNegatives(found, num_random, too_similar, missing)


def _choose(scores: np.ndarray, settings: MiningSettings, random: np.random.Generator) -> tuple[list[int], int]:
    """(the numbers of the chosen documents, how many of them were drawn at random).

    Args:
        scores: [documents]; -inf: may not be used; 0 or less: nothing in common.
    """
    first, count = settings.range_min, settings.num_negatives
    most = min(first + count, len(scores))
    best = np.argpartition(-scores, most - 1)[:most]
    best = best[np.lexsort((best, -scores[best]))]
    chosen = [int(i) for i in best[first:] if scores[i] > 0]
    if lacking := count - len(chosen):
        usable = np.flatnonzero(np.isfinite(scores))
        usable = np.setdiff1d(usable, [*chosen, *best[:first].tolist()])
        drawn = random.permutation(usable)[:lacking].tolist()
        return [*chosen, *drawn], len(drawn)
    return chosen, 0


def vector_scores(queries: np.ndarray, documents: np.ndarray) -> Scores:
    """Cosines, of vectors of length 1."""
    return lambda block: queries[block] @ documents.T


def ngram_scores(queries: Sequence[str], documents: Sequence[str]) -> Scores:
    """Cosines of sets of n-grams (two Chinese characters, five others), rare ones weighing more: w = log(N / n)."""
    from scipy.sparse import csr_matrix, diags

    grams, starts, _ = ngram_sets(folded_texts([*queries, *documents]))
    vocabulary, columns = np.unique(grams, return_inverse=True)
    counts = np.bincount(columns, minlength=len(vocabulary))
    weights = np.log((len(starts) - 1) / counts)[columns]
    shape = (len(starts) - 1, len(vocabulary))
    matrix = csr_matrix((weights.astype(np.float32), columns, starts), shape=shape)
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    matrix = csr_matrix(diags(1 / np.maximum(norms, 1e-12)) @ matrix)
    left, right = matrix[: len(queries)], matrix[len(queries) :].T.tocsc()
    return lambda block: (left[block] @ right).toarray()
