"""Classification: its loss by definition, its rows, its words for what cannot be, and a whole trip on an encoder."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score

from support.laws import attached
from support.models import make_tokenizer, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import IGNORE, pack
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import TextLabel
from weitiao.core.recipe import Recipe
from weitiao.data.tokenization import ChatProcessor
from weitiao.evaluate.measure import measure
from weitiao.evaluate.metrics.f1 import F1
from weitiao.objective.objectives.classification import Classification, best_threshold
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model

TEXTS = ("the quick brown fox", "what time is it in paris", "seven wizards mix boxes of liquid", "你好 世界")


def examples(count: int = 8, labels: str = "abc") -> list[TextLabel]:
    return [TextLabel(f"{TEXTS[i % 4]} {i}", (labels[i % len(labels)],)) for i in range(count)]


def ready(objective: Classification, found: list[TextLabel], family: str = "bert") -> tuple[Any, Any, Any]:
    """(the fitted objective, a tiny model with its head, all rows as one batch)."""
    objective = objective.fit(found)
    processor = ChatProcessor.make(make_wordpiece_tokenizer() if family == "bert" else make_tokenizer())
    batch = batch_of([row for x in found for row in objective.rows(x, processor)])
    model = attached("lora", family)
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict(objective.heads(32))
    model.heads["classes"].weight.data.mul_(50)
    return objective, model, batch


def wanted(objective: Classification, batch: Any, found: list[TextLabel]) -> torch.Tensor:
    return torch.tensor([objective.classes.index(found[i].labels[0]) for i in batch.row_ids])


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("pool", ["auto", "mean", "first", "last"])
def test_loss_equals_cross_entropy(family: str, pool: Any) -> None:
    found = examples()
    objective, model, batch = ready(Classification(pooling=pool), found, family)
    hidden = [model.hidden(batch)[a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    how = pool if pool != "auto" else {"bert": "mean", "llama": "last"}[family]
    pooled = torch.stack([{"mean": h.mean(0), "first": h[0], "last": h[-1]}[how] for h in hidden])
    z = model.heads["classes"](pooled)
    by_hand = torch.nn.functional.cross_entropy(z, wanted(objective, batch, found), reduction="sum")
    assert torch.allclose(objective.loss(model, batch).totals["classification"], by_hand, rtol=1e-5)
    assert objective.counts(batch) == {"classification": 8.0}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_prediction_and_loss_in_one_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, runs = examples(), []
    objective, model, batch = ready(Classification(), found, family)
    two = [pack(batch.rows[:3], [0, 1, 2]), pack(batch.rows[3:], [3, 4, 5, 6, 7])]
    held = EvalSet(found, lambda: two, found.__getitem__)
    body = model.backbone
    monkeypatch.setattr(model, "backbone", lambda *args: (runs.append(1), body(*args))[1])
    apart = [measure(model, objective, held, [name]).scores[name] for name in ("loss", "accuracy")]
    assert len(runs) == 4
    both = measure(model, objective, held, ["loss", "accuracy"]).scores
    assert len(runs) == 6
    assert [both[x.name].value for x in apart] == pytest.approx([x.value for x in apart], rel=1e-6)
    assert {x.n for x in both.values()} == {8} and apart[0].value > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, "balanced", {"a": 3.0}])
def test_class_weights_and_label_smoothing_equal_torch(smoothing: float, weights: Any) -> None:
    found = [*examples(8), *examples(4, "a")]
    objective, model, batch = ready(Classification(class_weights=weights, label_smoothing=smoothing), found)
    y, z = wanted(objective, batch, found), objective._scores(model, batch, "classes")
    given = objective.class_weights or {}
    if weights == "balanced":
        assert given == {"a": round(12 / (3 * 7), 6), "b": round(12 / 9, 6), "c": 2.0}
    each = torch.tensor([given.get(c, 1.0) for c in objective.classes])
    losses = torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=smoothing) * each[y]
    total, count = objective.loss(model, batch).totals["classification"], objective.counts(batch)["classification"]
    assert torch.allclose(total / count, losses.sum() / each[y].sum(), rtol=1e-5)


def test_focal_loss_equals_formula() -> None:
    found = examples()
    objective, model, batch = ready(Classification(focal_gamma=2.0), found)
    p = objective._scores(model, batch, "classes").softmax(1).gather(1, wanted(objective, batch, found)[:, None])[:, 0]
    assert torch.allclose(objective.loss(model, batch).totals["classification"], (-((1 - p) ** 2) * p.log()).sum())


def test_multi_label() -> None:
    found = [
        TextLabel(TEXTS[i % 4], x) for i, x in enumerate([("a",), ("a", "b"), (), ("b", "c"), ("c",), ("a", "b", "c")])
    ]
    objective, model, batch = ready(Classification(), found)
    assert objective.multi_label is True and objective.classes == ("a", "b", "c")
    held = torch.tensor([[float(c in found[i].labels) for c in "abc"] for i in batch.row_ids])
    assert torch.equal(batch.targets["classes"].float(), held)
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(
        objective._scores(model, batch, "classes"), held, reduction="none"
    )
    assert torch.allclose(objective.loss(model, batch).totals["classification"], by_hand.mean(1).sum(), rtol=1e-5)
    said = {"a": 0.9, "b": 0.2, "c": 0.5}
    assert objective._chosen(said) == ("a", "c") and objective.answer(dict.fromkeys("abc", 0.1)) == "none"
    assert objective.metric_pair(said, found[1]) == (("a", "c"), ("a", "b"))


def test_best_threshold_equals_brute_force() -> None:
    dice = random.Random(1)
    for many in (1, 3, 30):
        marks = [(round(dice.random(), 2), dice.random() < 0.4) for _ in range(many)]

        def f1(line: float, marks: list = marks) -> float:
            said = [p >= line for p, _ in marks]
            return float(f1_score([x for _, x in marks], said, zero_division=0))

        assert f1(best_threshold(marks)) == pytest.approx(max(f1(x / 200) for x in range(201)))
    assert best_threshold([(0.9, False)]) == 0.5


def test_thresholds_chosen_on_validation(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    """Each class's own where enough rows hold it, written into the run, used by whoever opens it; asked-for ones stay."""
    kinds = [["fox"] if i % 3 else ["fox", "dog"] if i % 2 else [] for i in range(90)] + [["rare"]] * 6
    rows = [{"text": f"{' '.join(x)} the quick {'brown ' * (i % 4)}{i}", "labels": x} for i, x in enumerate(kinds)]
    shape: dict[str, Any] = {
        "base": str(encoder),
        "data": [{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        "validation": 0.4,
        "train": {"steps": 5, "learning_rate": 1e-3},
        "evaluate": {"metrics": "auto", "samples": 0},
    }
    run = train_tiny(**shape, objective="classification")
    found = run.read("resolved.json")["objective"]["threshold"]
    assert set(found) == {"fox", "dog", "rare"} and found["fox"] != found["rare"]
    assert "validation rows" in str(run.decisions["objective.threshold"].reason)
    opened = open_model(str(run.folder))
    assert opened.objective.threshold == found
    said = {"fox": found["fox"] + 1e-6, "dog": found["dog"] - 1e-6, "rare": 0.0}
    assert opened.objective.answer(said) == "fox"
    assert opened.objective.to_record(said)["predicted"] == ["fox"]
    asked = train_tiny(**shape, objective={"name": "classification", "threshold": 0.3}, out=str(tmp_path / "asked"))
    assert asked.read("resolved.json")["objective"]["threshold"] == 0.3
    assert "objective.threshold" not in asked.decisions


@pytest.mark.parametrize("wrong", [1.5, -0.1, {"a": 2.0}])
def test_threshold_bounds(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a threshold is a probability"):
        Classification(threshold=wrong)
    with pytest.raises(DataError, match="threshold: there is no class 'nosuch'. Did you mean"):
        Classification(threshold={"nosuch": 0.1}).fit([TextLabel("x", ("nosuc", "b")), TextLabel("y", ())])


def test_overlong_split_refused(train_tiny: Any, encoder: Path, labelled: Path) -> None:
    with pytest.raises(RecipeError, match="overlong: classification has one target for a whole row"):
        train_tiny(base=str(encoder), data=[{"path": str(labelled)}], objective="classification", overlong="split")


def test_same_file_twice_counted_twice(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    """The same places, other columns: each row has its own right answer."""
    rows = [{"text": f"the fox {i}", "one": "a", "two": "b"} for i in range(30)]
    file = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    both = [{"path": file, "columns": {"text": "text", "label": label}} for label in ("one", "two")]
    shape = {"base": str(encoder), "objective": "classification", "train": {"steps": 2}}
    run = train_tiny(**shape, data=both, validation=0.2, evaluate={"data": both, "metrics": "auto", "samples": 0})
    assert run.read("scores.json")["after"]["accuracy"] | {"low": 0, "high": 0, "interval": ""} == {
        "name": "accuracy", "value": 0.5, "n": 60, "low": 0, "high": 0, "higher_is_better": True, "interval": "",
    }  # fmt: skip


def test_multi_label_macro_f1_equals_scikit_learn() -> None:
    pairs = [(("a",), ("a", "b")), (("b", "c"), ("b",)), ((), ("c",)), (("a", "c"), ("a", "c"))]
    columns = [[[float(c in labels) for c in "abc"] for labels in side] for side in zip(*pairs)]
    assert F1().score(pairs).value == pytest.approx(f1_score(columns[1], columns[0], average="macro", zero_division=0))


def test_long_text_keeps_start_and_class() -> None:
    objective = Classification().fit(examples())
    processor = ChatProcessor.make(make_wordpiece_tokenizer())
    (row,) = objective.rows(TextLabel("the quick brown fox jumps over the lazy dog", ("b",)), processor)
    kept, lost = objective.cut(row, 6)
    whole = list(row["input_ids"])
    assert list(kept["input_ids"]) == [*whole[:5], whole[-1]] and lost == whole[5:-1]
    assert list(kept["labels"]) == [IGNORE] * 6 and kept["targets"] == {"class_id": 1}
    pieces = objective.preview(kept, lost, processor)
    assert [kind for kind, _ in pieces] == ["context", "lost", "target"] and pieces[-1][1] == " → b"


def test_classes_sorted() -> None:
    found = [TextLabel("x", (label,)) for label in ("10", "9", "-1", "b", "a")]
    assert Classification().fit(found).classes == ("-1", "9", "10", "a", "b")


@pytest.mark.parametrize(
    ("objective", "labels", "words"),
    [
        (Classification(), "a", "every row has the class 'a', so there is nothing to train on"),
        (Classification(class_weights={"z": 2.0}), "ab", "class_weights: there is no class 'z'. The classes are: a, b"),
    ],
)
def test_untrainable_data_refused(objective: Classification, labels: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        objective.fit(examples(8, labels))


def test_column_not_a_class_refused() -> None:
    with pytest.raises(DataError, match="200 classes in 200 rows.*Is that the right column"):
        Classification().fit([TextLabel("x", (f"id{i}",)) for i in range(200)])


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """The class is decided by one word; one row has an unseen class, one has none, one no text."""
    rows = [
        {"text": f"{'fox' if i % 2 else 'dog'} {'the train_tiny ' * (i % 5)}{i}", "label": "ab"[i % 2]} for i in range(60)
    ]
    return write_jsonl(tmp_path / "labelled.jsonl", rows)


def test_encoder_trains_and_reopens(train_tiny: Any, encoder: Path, labelled: Path) -> None:
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(labelled)}],
        objective={"name": "classification", "head_learning_rate": 1e-2},
        method={"name": "full"},
        train={"steps": 80, "learning_rate": 3e-3, "evaluate_every": 20, "best_metric": "accuracy"},
        evaluate={"metrics": "auto", "samples": 3},
    )
    scores = run.read("scores.json")
    assert scores["before"]["accuracy"]["value"] < 0.9 and scores["after"]["accuracy"]["value"] == 1.0
    assert scores["after"]["accuracy"]["n"] == scores["after"]["loss"]["n"] >= 8
    samples = run.read("samples.jsonl")
    assert len(samples) == 3 and all(x["after"] == x["reference"] for x in samples)
    assert ["target", " → a"] in run.read("resolved.json")["previews"][0]["pieces"]
    again = open_model(str(run.folder))
    assert again.objective.classes == ("a", "b")
    from rich.console import Console

    from weitiao.core.reporter import Reporter

    measured = evaluate(str(run.folder), Reporter(Console(quiet=True)))
    assert measured["loss"].value == scores["after"]["loss"]["value"]


def test_unknown_class_set_aside(train_tiny: Any, encoder: Path, labelled: Path, tmp_path: Path) -> None:
    held = write_jsonl(
        tmp_path / "held.jsonl",
        [{"text": "fox", "label": "b"}, {"text": "cat", "label": "z"}, {"text": " ", "label": "a"}, {"text": "dog"}],
    )
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(labelled)}],
        objective="classification",
        evaluate={"data": str(held), "metrics": ["accuracy"]},
        train={"steps": 1},
        max_bad_fraction=1.0,
    )
    assert run.read("scores.json")["after"]["accuracy"]["n"] == 1
    reasons = {x["line"]: x["reason"] for x in run.read("bad_rows.jsonl")}
    assert "the text is empty" in reasons[3] and "no class" in reasons[4]


@pytest.mark.parametrize("objective", ["sft", "causal_lm"])
def test_encoder_cannot_generate(recipe_dict: dict, encoder: Path, objective: str) -> None:
    from rich.console import Console

    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.train import train

    with pytest.raises(
        RecipeError, match=f"objective: {objective} needs a decoder or encoder-decoder model.*bert.*classification"
    ):
        train(Recipe(**{**recipe_dict, "base": str(encoder), "objective": objective}), Reporter(Console(quiet=True)))
