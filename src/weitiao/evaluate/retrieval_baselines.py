"""What finds documents without a model: popularity, and what the same people have.

popularity       the documents that most training rows have
co-occurrence    documents that people have who also have what the row's user has had last

    score(d) = sum over the newest NEWEST s in seen of n(s, d) / sqrt(n(s) n(d))
    n(d): groups (people) that have d in training; n(s, d): that have both

    Deshpande & Karypis 2004, "Item-Based Top-N Recommendation Algorithms", sec. 4.1 (cosine). Needs the columns `group` in
    training rows and `seen` in test rows.

Both rank all documents by the same rules as the model, on the same rows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Pair, SourcedExample
from weitiao.core.messages import Message
from weitiao.core.metric import Metric, Reads
from weitiao.core.ranking import Documents, ScoresOf, ranks_of_queries, ranks_of_rows

NEWEST = 10  # documents of `seen` that count
CACHED = 2000  # documents whose neighbours are kept, [documents] each
RANKINGS: dict[Reads, Callable] = {"choices": ranks_of_rows, "rankings": ranks_of_queries}


@dataclass(frozen=True)
class Baseline:
    """A ranking without a model, of the rows of an evaluation."""

    name: Message
    pairs: Sequence[Pair]
    documents: Documents
    scores_of: ScoresOf

    def ranks(self, metric: Metric) -> list[tuple] | None:
        """What a metric compares, of each row or query; None: it does not compare ranks."""
        rank = RANKINGS.get(metric.reads)
        return rank(self.pairs, self.documents, self.scores_of) if rank else None


def retrieval_baselines(training: Sequence[SourcedExample], eval_set: EvalSet) -> list[Baseline]:
    """The baselines that the rows allow; none where a document hardly ever comes twice in training.

    Args:
        training: rows of the same task, outside it.
    """
    pairs = [x for x in eval_set.examples if isinstance(x, Pair)]
    corpus = [x.text for x in eval_set.corpus.examples if isinstance(x, Pair)] if eval_set.corpus else []
    documents = Documents.of(pairs, corpus)
    counts = Counter(x.example.other for x in training if isinstance(x.example, Pair))
    if not pairs or sum(counts.values()) < 2 * len(counts):
        return []
    popularity = np.array([float(counts[text]) for text in documents.number_of])
    baselines = [Baseline(Message("popularity"), pairs, documents, lambda _: popularity)]
    if any(x.history for x in pairs) and any(x.for_evaluation.get("group") for x in training):
        neighbours = CoOccurrence(baskets(training, documents), len(documents.number_of)).similarities
        newest = [[documents.number_of[y] for y in x.history if y in documents.number_of][-NEWEST:] for x in pairs]
        score = lambda row: sum(map(neighbours, newest[row]), np.zeros(len(documents.number_of)))  # noqa: E731
        baselines.append(Baseline(Message("co-occurrence"), pairs, documents, score))
    return baselines


def baskets(training: Sequence[SourcedExample], documents: Documents) -> list[list[int]]:
    """The documents that each group of training rows has, or has seen."""
    texts: dict[str, set[str]] = {}
    for x in training:
        group = x.for_evaluation.get("group")
        if group and isinstance(x.example, Pair):
            texts.setdefault(group, set()).update((x.example.other, *x.example.history))
    return [sorted(documents.number_of[text] for text in own if text in documents.number_of) for own in texts.values()]


class CoOccurrence:
    """How often the same groups have two documents."""

    def __init__(self, baskets: Sequence[Sequence[int]], num_documents: int) -> None:
        self.baskets = [np.array(x, int) for x in baskets]
        self.num_documents = num_documents
        self.groups_with: dict[int, list[int]] = {}
        for group, basket in enumerate(baskets):
            for document in basket:
                self.groups_with.setdefault(document, []).append(group)
        counts = np.bincount(np.concatenate([*self.baskets, np.zeros(0, int)]), minlength=num_documents)
        self.norms = np.sqrt(np.maximum(counts, 1.0))
        self.similarities = lru_cache(CACHED)(self._similarities)

    def _similarities(self, document: int) -> np.ndarray:
        """[documents]: the cosine of each document's groups with those of one document; 0 with itself."""
        together = np.zeros(self.num_documents)
        for group in self.groups_with.get(document, ()):
            together[self.baskets[group]] += 1.0
        together[document] = 0.0
        return together / (self.norms * self.norms[document])
