"""Hard negatives: the most similar documents, and never one that is right, nearly right, or right for the same question."""

import numpy as np
import pytest

from weitiao.core.example import Pair
from weitiao.data.hard_negatives import Candidates, MiningSettings, mine_negatives, ngram_scores, vector_scores

FREE = MiningSettings(2, relative_margin=None)


def made(rows: int = 200, dimensions: int = 8) -> tuple[list[Pair], np.ndarray, np.ndarray]:
    """Pairs of random vectors of length 1; the document's is near the query's."""
    random = np.random.default_rng(0)
    queries = random.normal(size=(rows, dimensions))
    documents = queries + 0.5 * random.normal(size=(rows, dimensions))
    scaled = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)]
    return [Pair(f"question {i:05}", f"document {i:05} {'abcdefghij'[i % 10] * 9}") for i in range(rows)], *scaled


@pytest.mark.parametrize("margin", [None, 0.0, 0.05, 0.5])
@pytest.mark.parametrize("first", [0, 3])
def test_best_that_may_be_used(margin: float | None, first: int) -> None:
    """Against the plain definition, row by row."""
    pairs, queries, documents = made()
    settings = MiningSettings(3, first, margin)
    candidates = Candidates(pairs)
    mined = mine_negatives(candidates, vector_scores(queries, documents), settings)
    for i, negatives in enumerate(mined.negatives):
        scores = queries[i] @ documents.T
        limit = np.inf if margin is None else max((1 - margin) * scores[i], 0)
        forbidden = set(candidates.forbidden(i).tolist())
        best = [j for j in np.argsort(-scores, kind="stable") if j not in forbidden and scores[j] <= limit]
        expected = [pairs[j].other for j in best[first : first + 3] if scores[j] > 0]
        assert list(negatives[: len(expected)]) == expected and len(set(negatives)) == 3
        assert pairs[i].other not in negatives
    assert (mined.too_similar > 0) == (margin is not None) and mined.missing == 0


def test_never_a_right_document() -> None:
    """Of the same query in another row, of a nearly equal query, and near-duplicates of these; whatever scores say."""
    right = "You can return the parcel within thirty days of delivery, free of charge."
    pairs = [
        Pair("how do I send a parcel back to you please, since it is too small for me", right),
        Pair(
            "How do I send a parcel back to you please, since it is too small for me!",
            "Returns are explained on the page of your order.",
        ),
        Pair("what is a horse", "An animal with four legs that people ride."),
        Pair("who pays for this", right.replace("thirty", "Thirty").upper()),
        Pair("where is the shop", "The shop is in the old town."),
    ]
    candidates = Candidates(pairs)
    everything = np.ones((len(candidates.queries), len(candidates.texts)), np.float32)
    mined = mine_negatives(candidates, lambda block: everything[block], MiningSettings(5, relative_margin=None))
    returns = {right, right.upper(), pairs[1].other}
    assert not returns & set(mined.negatives[0]) and not returns & set(mined.negatives[1])
    assert set(mined.negatives[0]) == {pairs[2].other, pairs[4].other}
    assert not {right, right.upper()} & set(mined.negatives[3]) and pairs[1].other in mined.negatives[3]
    assert mined.missing == 5 * 5 - sum(map(len, mined.negatives)) > 0


def test_ngrams_find_documents_with_the_query_in_them() -> None:
    pairs = [
        Pair("how do I reset the password", "Open the settings and choose a new one."),
        Pair("a horse", "An animal that people ride."),
        Pair("怎么退货", "请在订单页面点击申请。"),
    ]
    corpus = [
        "The password of the router cannot be reset.",
        "Horses sleep standing.",
        "退货政策见首页。",
        "Quite another thing.",
    ]
    candidates = Candidates(pairs, corpus)
    mined = mine_negatives(
        candidates, ngram_scores(candidates.queries, candidates.texts), MiningSettings(1, relative_margin=None)
    )
    assert [x[0] for x in mined.negatives] == [corpus[0], corpus[1], corpus[2]] and mined.random == 0


def test_drawn_at_random_where_nothing_is_in_common() -> None:
    pairs = [Pair("q" * 9, f"{x * 9}") for x in "abcdefgh"]
    candidates = Candidates(pairs[:1], [x.other for x in pairs[1:]])
    score = ngram_scores(candidates.queries, candidates.texts)
    chosen = {
        mine_negatives(candidates, score, MiningSettings(2, relative_margin=None, seed=seed)).negatives[0]
        for seed in range(8)
    }
    assert len(chosen) > 2 and mine_negatives(candidates, score, FREE).random == 2
    assert mine_negatives(candidates, score, FREE) == mine_negatives(candidates, score, FREE)


def test_what_is_skipped_does_not_come_back_at_random() -> None:
    pairs = [Pair(f"question {i}", f"document {i} {chr(97 + i) * 9}") for i in range(5)]
    scores = np.array([[1.0, 0.9, 0.8, 0, 0]] * 5)
    for seed in range(10):
        mined = mine_negatives(Candidates(pairs), lambda block: scores[block], MiningSettings(2, 2, None, seed))
        assert not {pairs[1].other, pairs[2].other} & set(mined.negatives[0])


def test_negatives_that_a_pair_has_are_not_found_again() -> None:
    pairs = [Pair(f"question {i}", f"document {i}", (f"wrong {i} {chr(97 + i) * 9}",)) for i in range(4)]
    candidates = Candidates(pairs)
    scores = ngram_scores(candidates.queries, candidates.texts)
    mined = mine_negatives(candidates, scores, MiningSettings(1, relative_margin=None))
    assert not any(pair.negatives[0] in new for pair, new in zip(pairs, mined.negatives))
