"""Rankings without a model: by hand, against scikit-learn's cosine, and in a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics.pairwise import cosine_similarity

from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.errors import RecipeError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Pair, SourcedExample, SourceLocation
from weitiao.core.reporter import Reporter
from weitiao.evaluate.metrics.ndcg_at_10 import NDCGAt10
from weitiao.evaluate.metrics.recall_at_10 import RecallAt10
from weitiao.evaluate.metrics.wer import WER
from weitiao.evaluate.retrieval_baselines import CoOccurrence, retrieval_baselines
from weitiao.pipeline.evaluate import evaluate

DESK = Reporter(Console(quiet=True))


def trained(person: str, *documents: str, history: tuple[str, ...] = ()) -> list[SourcedExample]:
    group = {"group": person} if person else {}
    return [
        SourcedExample(Pair("q", x, history=history), SourceLocation("train", i), for_evaluation=group)
        for i, x in enumerate(documents)
    ]


TRAINING = [
    *trained("ann", "a", "b"),
    *trained("bob", "a", "b", history=("c",)),
    *trained("cy", "a", "d"),
    *trained("di", "d"),
]


def rows(*pairs: Pair) -> EvalSet:
    return EvalSet(pairs, lambda: [], lambda row: pairs[row])


def test_popularity_and_co_occurrence_by_hand() -> None:
    """Counts: a 3, b 2, c 0 (1 seen), d 2. Who has c also has a and b: cosines 1 / sqrt(3) and 1 / sqrt(2)."""
    popularity, co_occurrence = retrieval_baselines(TRAINING, rows(Pair("x", "b", ("a", "c", "d"), history=("c",))))
    assert popularity.scores_of(0).tolist() == [2, 3, 0, 2]  # b, a, c, d
    assert popularity.ranks(RecallAt10()) == [(3, 4)], "d has the same count, and ranks before"
    assert co_occurrence.scores_of(0) == pytest.approx([2**-0.5, 3**-0.5, 0, 0])
    assert co_occurrence.ranks(RecallAt10()) == [(1, 4)] and co_occurrence.ranks(NDCGAt10()) == [([1], 4)]
    assert co_occurrence.ranks(WER()) is None


def test_only_the_newest_seen_count() -> None:
    seen = ("c", *(f"unknown {i}" for i in range(20)), *"d" * 10)
    *_, co_occurrence = retrieval_baselines(TRAINING, rows(Pair("x", "b", ("a", "c", "d"), history=seen)))
    assert co_occurrence.scores_of(0)[0] == 0, "b goes with c, which is not among the newest ten known documents"


def test_baselines_that_rows_allow() -> None:
    alone = [*trained("", "a", "b", "a", "b")]
    assert [str(x.name) for x in retrieval_baselines(alone, rows(Pair("x", "a", history=("b",))))] == ["popularity"]
    assert [str(x.name) for x in retrieval_baselines(TRAINING, rows(Pair("x", "a")))] == ["popularity"]
    assert retrieval_baselines(trained("", "a", "b", "c"), rows(Pair("x", "a"))) == [], "no document comes twice"


def test_cosine_of_scikit_learn() -> None:
    dice = np.random.default_rng(0)
    has = dice.random((40, 15)) < 0.3
    has[:, 3] = False
    expected = cosine_similarity(has.T.astype(float))
    np.fill_diagonal(expected, 0)
    found = CoOccurrence([np.flatnonzero(x).tolist() for x in has], 15)
    assert np.allclose([found.similarities(i) for i in range(15)], expected)


def test_corpus_and_baselines_of_a_run(train_tiny: Any, tmp_path: Path) -> None:
    """Every query's document is the most frequent one, and 30 documents of the corpus are in no row."""
    films = [f"the quick brown fox {i}" for i in range(40)]
    people = [
        {"query": f"dog {i}", "document": films[i % 3], "group": f"p{i % 12}", "seen": [films[(i + 1) % 3]]}
        for i in range(60)
    ]
    test = [
        {"query": f"lazy {i}", "document": films[i % 3], "group": f"t{i // 2}", "seen": [films[(i + 1) % 3]]}
        for i in range(44)
    ]
    settings = {
        "base": str(save_model(tmp_path / "bert", "bert")),
        "data": [{"path": str(write_jsonl(tmp_path / "people.jsonl", people))}],
        "objective": {"name": "embedding"},
        "train": {"steps": 2, "batch_size": 16, "evaluate_every": 1},
        "evaluate": {
            "data": str(write_jsonl(tmp_path / "test.jsonl", test)),
            "corpus": str(write_jsonl(tmp_path / "films.jsonl", [{"text": x} for x in films])),
            "metrics": ["recall_at_10", "ndcg_at_10"],
            "samples": 1,
        },
    }
    run = train_tiny(**settings)
    scores = run.read("scores.json")
    assert {tuple(x)[1] for x in run.read("row_results.json")["after"]["choices"]} == {40}, "all films were ranked"
    of_baselines = scores["baselines"]
    assert of_baselines["popularity (recall_at_10)"]["value"] == 1.0
    assert of_baselines["co-occurrence (ndcg_at_10)"]["clusters"] == scores["after"]["ndcg_at_10"]["clusters"] == 22
    again = evaluate(str(run.folder), DESK)
    assert {name: x.as_json() for name, x in again.baselines.items()} == of_baselines
    assert again["recall_at_10"].value == scores["after"]["recall_at_10"]["value"]
    with pytest.raises(RecipeError, match="only objective: embedding searches"):
        train_tiny(**{**settings, "objective": {"name": "rerank"}, "out": str(tmp_path / "other")})
