"""What is behind scores of classes, and metrics that read other columns than the answer."""

from pathlib import Path
from typing import Any

import pytest

from support.rows import write_jsonl
from support.sandbox import skip_without_sandbox
from weitiao import api
from weitiao.core.errors import DataError
from weitiao.evaluate.class_report import class_report


def test_matrix_shares_and_mistakes() -> None:
    answers, references = ["a", "a", "b", "b", "?", "a"], ["a", "b", "b", "a", "b", "b"]
    sure = [0.9, 0.6, 0.8, 0.7, 0.2, 0.95]
    probabilities = [
        ({"a": p, "b": 1 - p} if a == "a" else {"a": 1 - p, "b": p}, r) for a, r, p in zip(answers, references, sure)
    ]
    report = class_report(list(zip(answers, references)), probabilities, [f"text {i}" for i in range(6)])
    assert report["matrix"] == {"answers": ["a", "b", ""], "rows": {"a": [1, 1, 0], "b": [2, 1, 1]}}
    a = report["classes"]["a"]
    assert (a["precision"]["value"], a["recall"]["value"], a["f1"]) == (1 / 3, 1 / 2, 0.4)
    assert a["precision"]["n"] == 3 and a["precision"]["low"] < 1 / 3 < a["precision"]["high"]
    assert [(x["row"], x["text"]) for x in report["mistakes"]][:3] == [(5, "text 5"), (3, "text 3"), (1, "text 1")]
    assert sum(x["n"] for x in report["reliability"]) == 6


def test_never_answered_class_has_no_precision() -> None:
    report = class_report([("a", "a"), ("a", "b"), ("a", "b"), ("a", "a")], [])
    assert report["classes"]["b"]["precision"] is None and report["classes"]["b"]["recall"]["value"] == 0
    assert report["mistakes"][0]["probability"] is None


@pytest.mark.parametrize(
    "pairs", [[], [(1.0, 2.0)], [("long text", "another")] * 3, [(str(i), str(i)) for i in range(500)]]
)
def test_no_classes_no_report(pairs: list) -> None:
    assert class_report(pairs, []) == {}


@pytest.fixture
def done(train_tiny: Any) -> str:
    return str(train_tiny(evaluate={"metrics": ["loss"]}).folder)


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"what time is it {i}", "completion": ("paris", "the fox")[i % 2], **{k: v(i) for k, v in more.items()}}
        for i in range(12)
    ]


def test_column_group_widens_intervals(done: str, tmp_path: Path) -> None:
    alone = api.evaluate(done, str(write_jsonl(tmp_path / "a.jsonl", rows())), ["loss", "accuracy", "auroc", "ece"])
    grouped = api.evaluate(
        done, str(write_jsonl(tmp_path / "b.jsonl", rows(group=lambda i: i // 4))), ["loss", "accuracy", "auroc", "ece"]
    )
    for name, score in grouped.items():
        assert (score.clusters, score.n, alone[name].clusters) == (3, 12, 0) and score.value == pytest.approx(
            alone[name].value
        )
        assert "3 groups" in str(score.notes[-1])
    assert set(grouped.classes[""]) >= {"classes", "matrix", "mistakes", "reliability"}
    assert grouped.classes[""]["mistakes"][0]["text"].startswith("user: what time is it")


def test_columns_tests_and_schema(done: str, tmp_path: Path) -> None:
    skip_without_sandbox()
    more = {"tests": lambda i: ["assert True", "assert 1"], "schema": lambda i: {"type": "object"}}
    names = ["code_pass", "json_schema_valid", "json_valid", "bits_per_byte", "distinct_1", "answer_length"]
    scores = api.evaluate(done, str(write_jsonl(tmp_path / "a.jsonl", rows(**more))), names)
    assert list(scores) == names and {x.n for x in scores.values()} == {12}
    assert scores["bits_per_byte"].value > 0
    with pytest.raises(DataError, match="12 of 12 rows have nothing in a column 'tests'"):
        api.evaluate(done, str(write_jsonl(tmp_path / "b.jsonl", rows())), ["code_pass"])


def test_run_has_the_record_of_its_classes(train_tiny: Any) -> None:
    run = train_tiny(evaluate={"metrics": ["accuracy", "exact_match"]})
    record = run.read("classes.json", {})
    assert not record or set(record) == {"before", "after"}
