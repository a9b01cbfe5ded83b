"""The step that is kept is the best of the events, whichever way is better; and nothing is wished for that cannot be."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from support.models import save_model
from support.rows import rated_rows, write_jsonl
from support.sandbox import skip_without_sandbox
from weitiao.core.errors import Interrupted, RecipeError, RunError
from weitiao.core.metric import Metric
from weitiao.core.recipe import make_recipe
from weitiao.core.recipe_sections import Train
from weitiao.core.registry import create, names
from weitiao.core.run import Run
from weitiao.train.checkpoints import best
from weitiao.train.checkpoints.state import State

LOSSES = ([(1.0, 4.0), (2.0, 4.0)], [(9.0, 4.0), (8.0, 4.0)])  # good, bad
NUMBERS = ([((1.0,), (1.1,)), ((2.0,), (2.1,)), ((3.0,), (3.1,))], [((3.0,), (1.1,)), ((2.0,), (2.5,)), ((1.0,), (3.1,))])
RANKS = ([(1, 20), (2, 20)], [(15, 20), (20, 20)])
COUNTS = ([(3, 4), (4, 4)], [(0, 4), (1, 4)])
TAGS = ([(("B-a", "O"), ("B-a", "O"))] * 2, [(("O", "B-a"), ("B-a", "O"))] * 2)
PROBABLE = (
    [({"a": 0.9, "b": 0.1}, "a"), ({"a": 0.2, "b": 0.8}, "b"), ({"a": 0.7, "b": 0.3}, "a")],
    [({"a": 0.1, "b": 0.9}, "a"), ({"a": 0.9, "b": 0.1}, "b"), ({"a": 0.2, "b": 0.8}, "a")],
)
RANKED = ([((1, 2), 2), ((1,), 1)], [((9, 12), 2), ((15,), 1)])
CODE = ([("x = 1", "assert x == 1")] * 2, [("x = 2", "assert x == 1")] * 2)
JSON = ([('{"a": 1}', "")] * 2, [("{", "")] * 2)
SCHEMA = ([('{"a": 1}', '{"required": ["a"]}')] * 2, [("{}", '{"required": ["a"]}')] * 2)
REPEATED = ([("a b c d e f g h", "")] * 2, [("a b a b a b a b", "")] * 2)
TEXTS = ([("the lazy old dog", "the lazy old dog")] * 2, [("a fox", "the lazy old dog")] * 2)
GOOD_AND_BAD: dict[str, tuple[list, list]] = {
    **dict.fromkeys(("loss", "perplexity"), LOSSES),
    **dict.fromkeys(("mae", "mse", "pearson", "spearman"), NUMBERS),
    **dict.fromkeys(("mrr", "recall_at_10"), RANKS),
    **dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), TAGS),
    **dict.fromkeys(("auroc", "average_precision", "ece"), PROBABLE),
    **dict.fromkeys(("map", "ndcg_at_10"), RANKED),
    **dict.fromkeys(("distinct_1", "distinct_2", "repetition"), REPEATED),
    "bits_per_byte": LOSSES,
    "code_pass": CODE,
    "code_compiles": ([("x = 1", "")] * 2, [("x =", "")] * 2),
    "json_valid": JSON,
    "json_schema_valid": SCHEMA,
    "masked_accuracy": COUNTS,
    "refusal_recall": ([("no", "no")] * 2, [("yes", "no")] * 2),
    "over_refusal": ([("no", "no"), ("yes", "")], [("no", "no"), ("no", "")]),
}


@pytest.mark.parametrize("name", sorted({*names(Metric)} - {"answer_length"}))
def test_kept_step_is_the_best_by_every_metric(
    name: str, open_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_sandbox(name)
    metric: Any = create(Metric, name)
    good, bad = (metric.score(pairs) for pairs in GOOD_AND_BAD.get(name, TEXTS))
    nan = metric.score([(math.nan, 1.0)]) if name == "loss" else None
    model, kept = open_model(), []
    state, run = State(model, None), Run(tmp_path)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(best, "save_best", lambda run, model, state, metric=None: kept.append(state.step))
    for step, score in enumerate([*([nan] if nan else []), bad, good, bad, bad], 1):
        state.step = step
        loss = create(Metric, "loss").score(LOSSES[0])  # pyright: ignore[reportAttributeAccessIssue]
        best.validate(model, state, Train(best_metric=name), run, lambda s=score, x=loss: {"loss": x, name: s})
    assert state.best_step == kept[-1] == (3 if nan else 2) and state.evals_since_best == 2


@pytest.mark.parametrize(("metric", "chosen"), [("mae", min), ("spearman", max)])
def test_kept_step_is_the_best_of_the_events(train_tiny: Any, tmp_path: Path, metric: str, chosen: Any) -> None:
    base = save_model(tmp_path / "bert", "bert")
    run = train_tiny(
        base=str(base), data=[str(write_jsonl(tmp_path / "rows.jsonl", rated_rows(40)))], objective="regression",
        train={"steps": 8, "learning_rate": 0.3, "evaluate_every": 1, "best_metric": metric, "guard": "off"},
    )  # fmt: skip
    values = [(x["scores"][metric]["value"], -x["step"]) for x in run.history if x["event"] == "validation"]
    best_value = chosen(value for value, _ in values)
    assert run.read("best/step.json")["step"] == min(-step for value, step in values if value == best_value)


# -- wishes that cannot be met ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 0, "train": {"patience": 2}}, "train.patience: 2: no row is held out"),
        ({"validation": 0, "train": {"best_metric": "exact_match"}}, "best_metric: exact_match: no row is held out"),
        ({"train": {"patience": 2, "evaluate_every": 0}}, "with evaluate_every: 0 there is one validation, at the end"),
        ({"train": {"patience": 2, "evaluate_every": 9}}, "evaluate_every: 9 and 4 steps there is one validation"),
        (
            {"train": {"best_metric": "mae"}},
            "mae does not fit objective sft. Its metrics: loss, perplexity, accuracy",
        ),
        ({"evaluate": {"metrics": ["mrr"]}}, "mrr does not fit objective sft"),
        ({"train": {"best_metric": "answer_length"}}, "answer_length is neither better when higher nor when lower"),
    ],
)
def test_wish_that_cannot_be_met_is_refused_before_step_1(
    train_tiny: Any, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        train_tiny(**changes)
    assert not [x for x in Run(tmp_path / "run").history if x["event"] == "step"]


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_further_training_has_a_way_on(train_tiny: Any, tmp_path: Path) -> None:
    run = train_tiny()
    with pytest.raises(RunError, match=r"a run already .finished.\. Its recipe is another one: train.steps is 4 there, 9"):
        train_tiny(train={"steps": 9})
    further = train_tiny(init_from=str(run.folder), out=str(tmp_path / "further"))
    assert further.is_finished


@pytest.mark.parametrize("kind", ["order", "more"])
def test_resume_with_other_rows_names_the_file(
    train_tiny: Any, chat_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from support.runs import stop_at

    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    lines = chat_file.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = [*lines[1::-1], *lines[2:]] if kind == "order" else [*lines, *lines[:5]]
    chat_file.write_text("".join(changed), encoding="utf-8")
    with pytest.raises(RunError, match="has changed: the rows of .*chat.jsonl, or their order.*; or .*init_from="):
        train_tiny(again=True)


# -- room -------------------------------------------------------------------------------------------------------------


def counting(count: int, words: int) -> list[dict[str, str]]:
    return [{"prompt": f"count {i}", "completion": " ".join(["fox"] * words) + f" {i}"} for i in range(count)]


def test_answers_that_would_be_cut_are_told_before_training(train_tiny: Any, tmp_path: Path) -> None:
    rows = str(write_jsonl(tmp_path / "rows.jsonl", counting(24, 70)))
    evaluation = {"data": rows, "metrics": ["exact_match"], "samples": 0, "max_new_tokens": 8, "limit": 12}
    run = train_tiny(data=[rows], evaluate=evaluation, train={"steps": 1})
    (finding,) = [x for x in run.read("preflight.json") if x["name"] == "answer_room"]
    assert finding["level"] == "warning" and "references are longer than the {room:,}" in finding["message"]["template"]
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "12 of 12 answers were cut at 8 tokens; 12 references are longer" in report and "12 of 24" in report


def test_room_follows_the_references(train_tiny: Any, tmp_path: Path) -> None:
    rows = str(write_jsonl(tmp_path / "rows.jsonl", counting(24, 70)))
    evaluation = {"data": rows, "metrics": ["exact_match"], "samples": 0, "max_new_tokens": "auto", "limit": 2}
    run = train_tiny(data=[rows], evaluate=evaluation, train={"steps": 1})
    assert run.decisions["evaluate.max_new_tokens"].value > 70
    assert not [x for x in run.read("preflight.json") if x["name"] == "answer_room"]
    assert "cut at" not in json.dumps(run.scores)


def test_recipe_takes_only_lengths() -> None:
    for key in ("max_length", "evaluate.max_new_tokens"):
        plain: dict[str, Any] = {"base": "b", "data": "a", "out": "o"}
        section, _, name = key.rpartition(".")
        plain |= {section: {name: 0}} if section else {name: 0}
        with pytest.raises(RecipeError, match="expected auto or a whole number of at least 1, not 0"):
            make_recipe(plain)
