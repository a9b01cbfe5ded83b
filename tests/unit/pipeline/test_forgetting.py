"""Forgetting in a run: it changes nothing of the training, is kept over a resumption, and is off where it means nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support.rows import chat_rows, write_jsonl
from support.runs import stop_at
from support.sandbox import skip_without_sandbox
from weitiao.core.errors import Interrupted
from weitiao.core.run import Run
from weitiao.evaluate.forgetting import probes
from weitiao.evaluate.forgetting.behaviours import behaviour_prompts
from weitiao.evaluate.forgetting.few_shot import NUMBERS
from weitiao.pipeline import forgetting


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the prompts: a tiny model never ends an answer."""
    monkeypatch.setattr(probes, "behaviour_prompts", lambda: behaviour_prompts()[:6])


def weights(run: Run) -> dict[str, Any]:
    return load_file(next((run.folder / "best").glob("*.safetensors")))


def test_training_has_the_same_bits_with_and_without(train_tiny: Any, tmp_path: Path, few: None) -> None:
    rows = write_jsonl(tmp_path / "many.jsonl", chat_rows(80))
    shape = {"data": [{"path": str(rows)}], "method": {"name": "lora", "rank": 4, "dropout": 0.2}}
    metrics = {"metrics": ["exact_match", "loss"]}
    runs = {
        x: train_tiny(**shape, evaluate={**metrics, "forgetting": x}, out=str(tmp_path / str(x))) for x in (True, False)
    }
    on, off = (weights(runs[x]) for x in (True, False))
    assert on.keys() == off.keys() and all((on[name] == off[name]).all() for name in on)
    scores = runs[True].scores
    assert {"before", "after", "forgetting", "prompted", "baselines"} <= scores.keys()
    assert not {"forgetting", "prompted"} & runs[False].scores.keys()
    asked = {x["probe"] for x in scores["forgetting"]["findings"]}
    assert asked == {
        *(f"exam.world_capitals_{x}" for x in ("en", "zh")),
        *(f"bits_per_byte_{x}" for x in ("en", "zh")),
        *(f"behaviour.{what}_{x}" for what in ("format", "stops", "language", "refuses") for x in ("en", "zh")),
    }
    assert scores["forgetting"]["drift"]["value"] > 0
    assert scores["prompted"]["metric"] == "exact_match"
    assert scores["prompted"]["n"] == len(runs[True].read("prompted.json")["pairs"]) == scores["after"]["exact_match"]["n"]
    page = (runs[True].folder / "report.html").read_text(encoding="utf-8")
    assert "What it forgot" in page and "neutral text (English)" in page and "examples in its prompt" in page


def test_prompted_base_is_judged_by_tests(train_tiny: Any, tmp_path: Path, few: None) -> None:
    """Training rows have no column `tests`; the test rows' groups are those of the difference."""
    skip_without_sandbox()
    rows = [{**x, "tests": "pass" if i % 2 else "1 / 0", "group": str(i % 25)} for i, x in enumerate(chat_rows(50))]
    evaluate = {"data": str(write_jsonl(tmp_path / "test.jsonl", rows)), "metrics": ["loss", "code_pass", "code_compiles"]}
    data = [{"path": str(write_jsonl(tmp_path / "many.jsonl", chat_rows(80)))}]
    run = train_tiny(data=data, evaluate={**evaluate, "forgetting": True})
    prompted, values = run.read("prompted.json"), run.read("row_results.json")["after"]["tests"]
    assert (prompted["metric"], prompted["k"], prompted["tried"]) == ("code_pass", NUMBERS[0], {})
    assert prompted["groups"] == [x["group"] for x in rows]
    assert {value for _, value in (*prompted["pairs"], *values)} <= {0.0, 1.0} and len(values) == len(rows)
    record = run.scores["prompted"]
    assert (record["metric"], record["n"], record["test"]) == ("code_pass", 50, "paired_bootstrap_clusters")
    assert record["candidate_score"]["value"] == run.scores["after"]["code_pass"]["value"]
    assert run.scores["after"]["code_pass"]["clusters"] == record["candidate_score"]["clusters"] == 25


def test_a_resumed_run_does_not_ask_again(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    out, shape = str(tmp_path / "run"), {"evaluate": {"forgetting": True}}
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=out)
    first = Run.open(out).read("forgetting.jsonl")
    assert {x["when"] for x in first} == {"before"}
    counted: list[int] = []
    ask_all = forgetting.ask_all
    monkeypatch.setattr(forgetting, "ask_all", lambda *x, **more: counted.append(1) or ask_all(*x, **more))
    run = train_tiny(again=True, **shape, out=out)
    assert len(counted) == 1, "only after training"
    lines = run.read("forgetting.jsonl")
    assert lines[: len(first)] == first
    assert [x["id"] for x in lines if x["when"] == "after"] == [x["id"] for x in first]


def test_off_by_itself_for_a_tokenizer_without_words(train_tiny: Any) -> None:
    run = train_tiny()
    assert not (run.folder / "forgetting.jsonl").exists()
    assert run.decisions["evaluate.forgetting"].value is False
    assert "320" in str(run.decisions["evaluate.forgetting"].reason)


def test_without_time_the_first_items_of_each_list_are_asked_and_it_is_said(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    monkeypatch.setattr(forgetting, "MIN_VOCABULARY", 1)
    monkeypatch.setattr(forgetting, "SECONDS", 0.0)
    run = train_tiny(out=str(tmp_path / "short"))
    record = run.scores["forgetting"]
    by_probe = {x["probe"]: x["n"] for x in record["findings"]}
    assert by_probe["exam.world_capitals_en"] == by_probe["exam.world_capitals_zh"] == probes.CHUNK // 2
    notes = json.dumps(record["notes"])
    assert f'"n": {probes.CHUNK}, "total": 330' in notes


def test_evaluate_measures_a_run_against_its_base(train_tiny: Any, tmp_path: Path, few: None) -> None:
    from weitiao import api

    for method in ("lora", "full"):
        run = train_tiny(method={"name": method}, out=str(tmp_path / method))
        found = api.evaluate(run, forgetting=True).forgetting
        assert found is not None
        assert found["drift"]["value"] > 0, method
        bits = next(x for x in found["findings"] if x["probe"] == "bits_per_byte_en")
        assert bits["change"] != 0 and bits["n"] == 44
