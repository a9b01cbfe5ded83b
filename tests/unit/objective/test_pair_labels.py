"""Pairs that do not belong together are never trained on as if they did."""

import json
from pathlib import Path
from typing import Any

import pytest

from weitiao.core.errors import DataError
from weitiao.core.example import Pair
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.read import read_sources
from weitiao.objective.objectives.embedding import Embedding
from weitiao.objective.objectives.rerank import Rerank


def pairs(path: Path, column: str, no: Any, yes: Any) -> list[Any]:
    rows = [{"sentence1": f"reset {i}?", "sentence2": f"code {i}", column: yes if i % 2 else no} for i in range(60)]
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    reading = read_sources([Source(path=str(path))], create("objective", "embedding"), 0.0)
    return [x.example for x in reading.examples]


@pytest.mark.parametrize("column", ["label", "is_duplicate", "relevance", "score", "Label", "标签"])
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), ("0", "1"), ("FALSE", "TRUE"), (0.0, 1.0)])
def test_label_of_a_pair_is_its_score(tmp_path: Path, column: str, no: Any, yes: Any) -> None:
    examples = pairs(tmp_path / "x.jsonl", column, no, yes)
    assert [x.similarity for x in examples] == [0.0, 1.0] * 30
    for loss_type in ("in_batch_negatives", "triplet"):
        with pytest.raises(DataError, match="60 of 60 rows have a similarity score, or a label.*loss_type: cosent"):
            Embedding(loss_type=loss_type).fit(examples)
    assert Embedding(loss_type="cosent").fit(examples)
    with pytest.raises(DataError, match="60 of 60 rows have a score, or a label.*one row per query"):
        Rerank().fit(examples)


def test_held_out_pair_that_is_no_match_is_a_bad_row() -> None:
    with pytest.raises(ValueError, match="score is 0, and loss_type: in_batch_negatives takes every pair as a match"):
        Embedding().rows(Pair("a", "b", similarity=0.0), None)
    with pytest.raises(ValueError, match="score is 0: its document does not answer the query"):
        Rerank().rows(Pair("a", "b", ("c",), 0.0), None)


def test_class_beside_a_pair_is_named_as_not_read(tmp_path: Path) -> None:
    rows = [{"question": "how?", "answer": "so", "label": "billing"}]
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0]))
    reading = read_sources([Source(path=str(tmp_path / "x.jsonl"))], create("objective", "embedding"), 0.0)
    assert reading.examples[0].example == Pair("how?", "so")
    assert [str(x) for x in reading.columns[0].notices()] == [f"{tmp_path}/x.jsonl: question <-> answer; not read: label"]


def test_pair_of_a_class_that_is_no_match_is_refused(tmp_path: Path) -> None:
    rows = [{"query": "a", "document": x, "relevance": y} for x, y in (("b", "relevant"), ("c", "Not relevant"))]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    reading = read_sources([Source(path=str(tmp_path / "x.jsonl"))], create("objective", "embedding"), 0.0)
    assert [x.level for x in reading.findings()] == ["error", "fine"]


def test_numbered_negatives_are_read(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "negative_1": "c", "negative_2": x} for x in ("d", "")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    reading = read_sources([Source(path=str(tmp_path / "x.jsonl"))], create("objective", "embedding"), 0.0)
    assert [x.example for x in reading.examples] == [Pair("a", "b", ("c", "d")), Pair("a", "b", ("c",))]
