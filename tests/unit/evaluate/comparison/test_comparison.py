"""Comparisons of what models said: differences, slices, rows to read, gates."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import Chat, Turn
from weitiao.core.intervals import bootstrap_draws, percentiles
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.evaluate.comparison.comparison import compare_results
from weitiao.evaluate.comparison.gates import check_gates, read_gates
from weitiao.evaluate.comparison.results import ComparedRow, Results

LABELS = ("ai", "sports", "trivia")


def rows_of(n: int) -> list[ComparedRow]:
    rows = []
    for i in range(n):
        turns = (
            Turn("user", ("question " if i % 2 else "问题问题问题") * (1 + i % 7) + str(i)),
            Turn("assistant", LABELS[i % 3]),
        )
        rows.append(ComparedRow.of(Chat(turns), f"file{i % 2}.jsonl"))
    return rows


def results(name: str, right: float, n: int = 90, seed: int = 0, metrics: tuple[str, ...] = ("accuracy", "f1")) -> Results:
    """A model that is right on a share of the rows, and always says something."""
    random, pairs = np.random.default_rng(seed), []
    for x in rows_of(n):
        said = x.reference if random.random() < right else LABELS[(LABELS.index(x.reference) + 1) % 3]
        pairs.append((said, x.reference))
    losses = [(float(random.exponential(2 - right)), 2.0) for _ in range(n)]
    return Results(name, f"runs/{name}", {"": rows_of(n)}, {"choices": pairs, "answers": pairs, "row_losses": losses},
                   (*metrics, "loss"), "tokens")  # fmt: skip


def test_the_better_model_is_found_and_its_rows_can_be_read() -> None:
    found = compare_results([results("old", 0.5, seed=1), results("new", 0.9, seed=2)])
    by_metric = {x.metric: x for x in found.differences}
    accuracy = by_metric["accuracy"]
    assert accuracy.verdict == "better" and accuracy.test == "mcnemar" and accuracy.low > 0 and accuracy.p_adjusted < 0.01
    assert accuracy.change == pytest.approx((accuracy.wins - accuracy.losses) / 90)  # pyright: ignore[reportOptionalOperand]
    assert accuracy.wins + accuracy.ties + accuracy.losses == 90  # pyright: ignore[reportOptionalOperand]
    assert by_metric["f1"].test == "paired_bootstrap" and by_metric["f1"].wins is None
    assert len(found.regressions) == accuracy.losses and len(found.wins) == accuracy.wins
    first = found.changes[0]
    assert first.change < 0 and first.reference_answer == first.row.reference != first.candidate_answer
    assert {x.kind for x in found.slices} == {"length", "label", "source", "script"}
    assert all(x.difference.n >= 10 for x in found.slices)


def test_equal_models_have_no_difference() -> None:
    found = compare_results([results("a", 0.8), replace(results("a", 0.8), name="b")])
    assert {x.verdict for x in found.differences} == {"open"} and not found.changes
    assert found.differences[0].low < 0 < found.differences[0].high  # never an empty interval


def test_corpus_metrics_draw_the_same_rows_of_both() -> None:
    """The paired interval is that of a bootstrap which resamples pairs of answers."""
    one, two = results("a", 0.7, seed=3), results("b", 0.75, seed=4)
    found = next(x for x in compare_results([one, two], ["loss"]).differences)
    a, b = (np.array(x.row_results["row_losses"]) for x in (one, two))  # [n, (loss, tokens)]
    picks = np.concatenate(list(bootstrap_draws(90, 2000)))
    drawn = [b[x, 0].sum() / b[x, 1].sum() - a[x, 0].sum() / a[x, 1].sum() for x in picks]
    assert (found.low, found.high) == pytest.approx(percentiles(drawn, 90), abs=1e-9)


def test_holm_counts_every_model_and_metric() -> None:
    found = compare_results([results("a", 0.7, seed=5), results("b", 0.8, seed=6), results("c", 0.75, seed=7)])
    assert len(found.differences) == 6
    assert all(x.p <= x.p_adjusted for x in found.differences)
    smallest = min(found.differences, key=lambda x: x.p)
    assert smallest.p_adjusted == pytest.approx(min(1.0, 6 * smallest.p))


def test_rows_that_belong_together_are_drawn_together() -> None:
    one, two = results("a", 0.5, seed=8), results("b", 0.7, seed=9)
    for x in (one, two):
        x.rows[""] = [replace(row, cluster=str(i // 3)) for i, row in enumerate(x.rows[""])]
    found = compare_results([one, two], ["accuracy"]).differences[0]
    assert found.test == "paired_bootstrap_clusters" and found.candidate_score.clusters == 30


def test_few_rows_have_no_verdict() -> None:
    found = compare_results([results("a", 0.1, 12), results("b", 1.0, 12)])
    assert {x.verdict for x in found.differences} == {"few_rows"}


def test_rows_must_be_the_same() -> None:
    other = results("b", 0.5)
    other.rows[""] = [*other.rows[""][:-1], replace(other.rows[""][-1], fingerprint="another")]
    with pytest.raises(DataError, match="90 and 90 rows, 89 of them the same"):
        compare_results([results("a", 0.5), other])
    with pytest.raises(DataError, match="no rows"):
        compare_results([replace(results("a", 0.5, 0), rows={"": []}), replace(results("b", 0.5, 0), rows={"": []})])


def test_one_class_only() -> None:
    """All rows right or wrong: an interval all the same."""
    found = compare_results([results("a", 1.0), results("b", 1.0, seed=1)], ["accuracy"]).differences[0]
    assert found.change == 0 and found.p == 1 and found.low < 0 < found.high


def test_losses_of_different_tokenizers_are_not_compared() -> None:
    found = compare_results([results("a", 0.5), replace(results("b", 0.6), tokenizer="other")])
    assert {x.metric for x in found.differences} == {"accuracy", "f1"}
    assert any("different tokens" in str(x) for x in found.notes)


def test_record_can_be_compared_again(tmp_path: Path) -> None:
    found = compare_results([results("old", 0.6, seed=1), results("new", 0.7, seed=2)])
    found.write(tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 90 and set(lines[0]["answers"]) == {"old", "new"}
    assert {x["values"]["accuracy"]["new"] for x in lines} == {0.0, 1.0}
    again = compare_results([Results.read(tmp_path / "results" / f"{x}.json") for x in ("old", "new")])
    assert again.as_json() == found.as_json() == json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    (tmp_path / "broken.json").write_text("[1]")
    with pytest.raises(DataError, match="no results"):
        Results.read(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("require", "no_worse", "by_interval", "passed"),
    [
        (["accuracy>=0.5"], [], False, True),
        (["accuracy>=99%"], [], False, False),
        (["loss<100", "f1>0.1"], ["accuracy:1%"], False, True),
        ([], ["accuracy:0%"], True, True),
        (["accuracy>=0.9"], [], True, False),
        ([], ["loss:0"], False, True),
    ],
)
def test_gates(require: list[str], no_worse: list[str], by_interval: bool, passed: bool) -> None:
    found = compare_results([results("old", 0.5, seed=1), results("new", 0.9, seed=2)])
    gates = check_gates(read_gates(require, no_worse), found.differences, by_interval)
    assert len(gates) == len(require) + len(no_worse) and all(x.passed for x in gates) == passed


def test_gate_on_a_worse_model_closes() -> None:
    found = compare_results([results("old", 0.9, seed=2), results("new", 0.5, seed=1)])
    assert [x.passed for x in check_gates(read_gates([], ["accuracy:1%", "accuracy:60%"]), found.differences)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("require", [["f1"], ["f1=0.8"], ["f1>=zero"], [""], ["f1>=0.8.1"]])
def test_gates_that_are_not_understood(require: list[str]) -> None:
    with pytest.raises(RecipeError, match="is not understood"):
        read_gates(require, [])


def test_gate_on_nothing_is_refused() -> None:
    found = compare_results([results("a", 0.5), results("b", 0.6)])
    for require, no_worse in ((["bleu>=1"], []), ([], ["exams:1%"])):
        with pytest.raises(RecipeError, match="was not measured"):
            check_gates(read_gates(require, no_worse), found.differences)
    with pytest.raises(RecipeError, match="own unit"):
        read_gates([], ["loss:1%"])


def test_row_values_have_the_score_as_mean() -> None:
    pairs = results("a", 0.7).row_results["choices"]
    metric = create(Metric, "accuracy")
    assert np.mean(metric.row_values(pairs) or []) == pytest.approx(metric.score(pairs).value)
