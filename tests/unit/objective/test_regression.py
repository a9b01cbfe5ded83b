"""Regression: loss by definition, label encoding, refusals, and a whole run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from support.laws import attached
from support.models import make_tokenizer, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, rated_rows, write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import TextScore
from weitiao.core.metric import Metric
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.data.mappings.text_score import infer_columns
from weitiao.data.read import TooManyBadRows, read_sources
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.regression import Regression
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file

DESK = Reporter(Console(quiet=True))


def examples(count: int = 8, many: int = 2) -> list[TextScore]:
    words = ("the quick brown fox", "what time is it", "你好 世界")
    return [TextScore(f"{words[i % 3]} {i}", tuple(1000 + (i * i) ** (k + 1) for k in range(many))) for i in range(count)]


def ready(objective: Regression, found: list[TextScore], family: str = "bert") -> tuple[Any, Any, Any]:
    """(the fitted objective, a tiny model with its head, all rows as one batch)."""
    objective = objective.fit(found)
    processor = ChatProcessor.make(make_wordpiece_tokenizer() if family == "bert" else make_tokenizer())
    batch = batch_of([row for x in found for row in objective.rows(x, processor)])
    model = attached("lora", family)
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict(objective.heads(32))
    model.heads["numbers"].weight.data.mul_(50)
    return objective, model, batch


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("criterion", ["mse", "huber"])
def test_loss_equals_torch_on_standardized_targets(family: str, criterion: Any) -> None:
    found = examples()
    objective, model, batch = ready(Regression(criterion=criterion, delta=0.5), found, family)
    y = np.array([found[i].values for i in batch.row_ids])
    target = torch.tensor((y - y.mean(0)) / y.std(0), dtype=torch.float32)
    assert torch.equal(batch.targets["values"], target)
    hidden = [model.hidden(batch)[a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    z = model.heads["numbers"](torch.stack([h.mean(0) if family == "bert" else h[-1] for h in hidden]))
    by_hand = torch.nn.MSELoss(reduction="sum") if criterion == "mse" else torch.nn.HuberLoss(reduction="sum", delta=0.5)
    assert torch.allclose(objective.loss(model, batch).totals["regression"], by_hand(z, target) / 2, rtol=1e-5)
    assert objective.counts(batch) == {"regression": 8.0}
    said = np.array(objective.predict(model, batch))
    assert said == pytest.approx(z.detach().numpy() * y.std(0) + y.mean(0), rel=1e-5)


def test_values_are_float_targets_and_no_labels() -> None:
    objective = Regression(means=(0.0,), stds=(1.0,))
    (row,) = objective.rows(TextScore("fox", (-100.0,)), ChatProcessor.make(make_wordpiece_tokenizer()))
    batch = batch_of([row])
    assert set(batch.labels.tolist()) == {IGNORE} and objective.num_targets(row) == 1
    assert batch.targets["values"].tolist() == [[-100.0]] and batch.targets["values"].dtype == torch.float32


def test_longer_text_truncated_first() -> None:
    objective, processor = Regression(means=(0.0,), stds=(1.0,)), ChatProcessor.make(make_wordpiece_tokenizer())
    long, short = "the quick brown fox jumps over the lazy dog", "seven wizards mix"
    (row,) = objective.rows(TextScore(long, (2.0,), short), processor)
    whole = list(row["input_ids"])
    assert whole == list(processor.tokenizer(long, short).input_ids)
    begins = row["second"]
    kept, lost = objective.cut(row, len(whole) - 2)
    assert list(kept["input_ids"]) == [*whole[: begins - 2], *whole[begins:]] and lost == whole[begins - 2 : begins]
    assert objective.preview(kept, lost, processor)[-1] == ("target", " → 2")
    kept, lost = objective.cut(row, 7)
    assert len(kept["input_ids"]) == 7 and kept["input_ids"][-1] == whole[-1]
    assert {*kept["input_ids"][:3]} <= {*whole[:begins]} and kept["input_ids"][3] == whole[begins]
    assert sorted([*kept["input_ids"], *lost]) == sorted(whole)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([TextScore("a", (2.0,)), TextScore("b", (2.0,))], "number 1 is 2 in every row, so there is nothing to train on"),
        ([TextScore("a", (1.0, 0.1)), TextScore("b", (2.0, 0.1))], "number 2 is 0.1 in every row"),
        ([TextScore("a", (1e308,)), TextScore("b", (-1e308,))], "number 1 is too large to compute with"),
    ],
)
def test_untrainable_data_refused(found: list[TextScore], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Regression().fit(found)


def test_inconsistent_number_of_targets_refused() -> None:
    objective = Regression().fit([*examples(8), TextScore("odd", (1.0,))])
    with pytest.raises(ValueError, match="the row has 1 numbers, but other rows have 2"):
        objective.rows(TextScore("odd", (1.0,)), ChatProcessor.make(make_wordpiece_tokenizer()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("three", "column 'score' is 'three', not a number"),
        ("nan", "not a finite number"),
        ("-inf", "not a finite number"),
        (1e999, "not a finite number"),
        (True, "not a finite number"),
        (None, "the row has no number"),
        ([], "an empty list"),
        ({"a": 1}, "not a number"),
    ],
)
def test_non_numeric_target_set_aside(tmp_path: Path, given: Any, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "fox", "score": 1}, {"text": "fox", "score": given}, {"text": " ", "score": 2}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read_sources((Source(path=str(file)),), Regression(), 1.0)
    assert [x.example.values for x in reading.examples] == [(1.0,)]
    assert [x.where.line for x in reading.bad] == [2, 3]
    assert words in str(reading.bad[0].reason) and str(reading.bad[1].reason) == "the text is empty"
    with pytest.raises(TooManyBadRows, match="2 of 3 rows cannot be used"):
        read_sources((Source(path=str(file)),), Regression(), 0.5)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "rating": 1}, "text -> number: rating"),
        ({"sentence1": "a", "sentence2": "b", "score": 1}, "sentence1 + sentence2 -> number: score"),
        ({"text": "a", "other": "b", "values": [1, 2]}, "text + other -> number: values"),
    ],
)
def test_columns_detected(row: dict, words: str) -> None:
    (found,) = infer_columns(row)
    assert found.description == words and found.make(row).values in ((1.0,), (1.0, 2.0))


@pytest.mark.parametrize(("name", "judge"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_correlations_equal_scipy(name: str, judge: Any) -> None:
    random = np.random.default_rng(0)
    right = random.integers(0, 4, (60, 2)).astype(float)  # with ties
    said = right + random.normal(size=(60, 2))
    said[:20] = said[20:40]
    score = create(Metric, name).score([(tuple(a), tuple(b)) for a, b in zip(said, right)])
    assert score.value == pytest.approx(np.mean([judge(said[:, k], right[:, k]).statistic for k in (0, 1)]))
    assert score.n == 60 and score.low < score.value < score.high and score.higher_is_better
    assert create(Metric, name).score([((1.0,), (2.0,)), ((1.0,), (3.0,))]).value == 0.0


def test_errors_equal_definition() -> None:
    pairs = [((1.0,), (2.0,)), ((5.0,), (2.0,))]
    mse, mae = (create(Metric, name).score(pairs) for name in ("mse", "mae"))
    assert (mse.value, mae.value) == (5.0, 2.0) and not mse.higher_is_better and (mse.low, mse.high) == (1.0, 9.0)
    with pytest.raises(RecipeError, match="compares numbers"):
        create(Metric, "mse").score([("spam", "ham")])


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_trains_and_reopens(train_tiny: Any, tmp_path: Path, family: str, two: bool) -> None:
    run = train_tiny(
        base=str(save_model(tmp_path / "base", family)),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rated_rows(60, two)))}],
        objective={"name": "regression", "head_learning_rate": 1e-2},
        method={"name": "full"},
        train={"steps": 80, "learning_rate": 3e-3, "evaluate_every": 20, "best_metric": "pearson"},
        evaluate={"metrics": "auto", "samples": 3},
    )
    before, after = run.read("scores.json")["before"], run.read("scores.json")["after"]
    assert after["pearson"]["value"] > 0.9 and after["pearson"]["n"] == after["loss"]["n"] >= 8
    assert after["mse"]["value"] < 0.3 * before["mse"]["value"] and after["loss"]["value"] < 0.3
    again = evaluate(str(run.folder), DESK)
    assert {name: again[name].value for name in after} == pytest.approx({name: x["value"] for name, x in after.items()})
    opened = open_model(str(run.folder))
    assert opened.objective.means == pytest.approx((2.5,), abs=0.3)
    rows = [{"id": i, **row} for i, row in enumerate(rated_rows(10, two))]
    file = write_jsonl(tmp_path / "new.jsonl", [{k: x for k, x in row.items() if k != "score"} for row in rows])
    assert predict_file(opened, str(file), str(tmp_path / "out.jsonl"), DESK).rows == 10
    said = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [x["id"] for x in said] == list(range(10)) and set(said[0]) == {*rows[0], "predicted"} - {"score"}
    assert stats.pearsonr([x["predicted"] for x in said], [row["score"] for row in rows]).statistic > 0.9
