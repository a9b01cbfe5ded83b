"""`weitiao compare`: runs, bases and records on the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.rows import chat_rows, write_jsonl

METRICS = {"evaluate": {"metrics": ["loss", "accuracy", "exact_match"], "samples": 1, "max_new_tokens": 4}}


@pytest.fixture
def two_runs(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", chat_rows(30))
    changes: dict[str, Any] = {"validation": {"path": str(held_out)}, **METRICS}
    one = train_tiny(out=str(tmp_path / "one"), train={"steps": 1}, **changes).folder
    return one, train_tiny(out=str(tmp_path / "two"), train={"steps": 20}, **changes).folder


def test_recorded_rows_are_used(two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is opened where both runs have recorded the same rows."""
    monkeypatch.setattr("weitiao.pipeline.compare.open_model", None)
    code, said = weitiao("compare", *two_runs, "--json", "--out", "record")
    assert code == 0, said
    record = json.loads(said)
    assert {x["metric"] for x in record["differences"]} == {"loss", "accuracy", "exact_match"}
    loss = record["differences"][0]
    assert loss["n"] == 30 and loss["verdict"] == "better" and loss["change"] < loss["high"] < 0
    assert Path("record/comparison.json").is_file() and Path("record/rows.jsonl").is_file()


def test_base_is_measured_on_the_rows_of_the_run_once(two_runs: tuple[Path, Path], tiny_llama: Path) -> None:
    words = ("compare", f"base={tiny_llama}", two_runs[1], "--out", "record")
    code, said = weitiao(*words)
    assert code == 0 and "two compared with base" in said and "report: record/report.html" in said
    assert "measured before" not in said
    code, said = weitiao(*words)
    assert code == 0 and "as it was measured before: record/results/base.json" in said
    code, said = weitiao("compare", "record/results/base.json", two_runs[1], "--out", "again")
    assert code == 0 and "loss" in said
    kept = json.loads(Path("record/comparison.json").read_text(encoding="utf-8"))["differences"][0]
    from_file = json.loads(weitiao(*words[:3], "--data", "held_out.jsonl", "--out", "file", "--json")[1])["differences"][0]
    assert from_file["reference_score"]["value"] == pytest.approx(kept["reference_score"]["value"], abs=1e-5)


def test_recorded_equals_measured(two_runs: tuple[Path, Path]) -> None:
    one, two = two_runs
    recorded = json.loads(weitiao("compare", one, two, "--json", "--metric", "loss", "--out", "a")[1])["differences"][0]
    data = ("--data", "held_out.jsonl", "--out", "b")
    measured = json.loads(weitiao("compare", one, two, "--json", "--metric", "loss", *data)[1])["differences"][0]
    assert measured["change"] == pytest.approx(recorded["change"], abs=1e-5)


def test_gates_decide_the_exit_code(two_runs: tuple[Path, Path]) -> None:
    one, two = two_runs
    code, said = weitiao("compare", one, two, "--require", "loss<0.0001", "--out", "a")
    assert code == 4 and "loss<0.0001 does not hold. two: " in said
    code, said = weitiao("compare", one, two, "--no-worse", "loss:0", "--require", "loss<100", "--out", "a")
    assert code == 0 and "loss:0 holds" in said
    code, said = weitiao("compare", two, one, "--no-worse", "loss:0", "--json", "--out", "b")
    assert code == 4 and json.loads(said)["passed"] is False
    code, said = weitiao("compare", one, two, "--require", "bleu>=1", "--out", "a")
    assert code == 2 and "bleu was not measured; there are: loss, accuracy, exact_match" in said


def test_rows_that_differ_are_refused(two_runs: tuple[Path, Path], train_tiny: Any, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", chat_rows(25))
    three = train_tiny(out=str(tmp_path / "three"), train={"steps": 1}, validation={"path": str(other)}, **METRICS).folder
    code, said = weitiao("compare", two_runs[0], three)
    assert code == 2 and "one and three were not measured on the same rows: 30 and 25 rows, 25 of them the same" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ONE"], "give two or more models"),
        (["ONE", "nothing/here"], "nothing/here"),
        (["a=ONE", "a=TWO"], "two models are called a"),
        (["ONE", "TWO", "--data", "empty.jsonl"], "empty.jsonl"),
        (["ONE", "TWO", "--require", "f1"], "is not understood"),
        (["BASE", "BASE"], "none of the models is a run with held-out rows"),
    ],
)
def test_bad_input(words: list[str], expected: str, two_runs: tuple[Path, Path], tiny_llama: Path) -> None:
    Path("empty.jsonl").write_text("")
    names = {"ONE": two_runs[0], "TWO": two_runs[1], "BASE": tiny_llama}
    for name, path in names.items():
        words = [x.replace(name, str(path)) for x in words]
    code, said = weitiao("compare", *words)
    assert code == 2 and expected in said


EXAM = """name: colours
description: colours
language: en
licence: CC0
data: {path: items.jsonl}
question: "{{ question }}"
options: ["red", "green"]
answer: "{{ answer }}"
"""


def write_exam() -> None:
    """colours.yaml, of 24 items."""
    items = [{"question": f"the fox {i} is", "answer": ("red", "green")[i % 2]} for i in range(24)]
    write_jsonl(Path("items.jsonl"), items)
    Path("colours.yaml").write_text(EXAM)


def test_exams_are_compared_item_by_item(two_runs: tuple[Path, Path], tiny_llama: Path) -> None:
    write_jsonl(
        Path("items.jsonl"), [{"question": f"the fox {i} is", "answer": ("red", "green")[i % 2]} for i in range(24)]
    )
    Path("colours.yaml").write_text(EXAM)
    words = ("compare", f"base={tiny_llama}", two_runs[1], "--exam", "colours.yaml", "--json", "--out", "record")
    code, said = weitiao(*words, "--no-worse", "exams:100%")
    assert code == 0, said
    record = json.loads(said)
    exam = next(x for x in record["differences"] if x["metric"] == "exam.colours")
    assert exam["n"] == 24 and exam["test"] == "mcnemar" and exam["wins"] + exam["losses"] + exam["ties"] == 24
    assert [x["gate"] for x in record["gates"]] == ["exams:100%"]
    kept = json.loads(Path("record/results/base.json").read_text(encoding="utf-8"))["exams"]["colours"]
    assert len(kept) == 24
    code, said = weitiao("compare", tiny_llama, two_runs[1], "--no-worse", "exams:1%", "--out", "other")
    assert code == 2 and "exams was not measured" in said


def test_only_exams_where_there_are_no_rows(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(
        Path("items.jsonl"), [{"question": f"the fox {i} is", "answer": ("red", "green")[i % 2]} for i in range(24)]
    )
    Path("colours.yaml").write_text(EXAM)
    code, said = weitiao("compare", tiny_llama, tiny_llama, "--exam", "colours.yaml", "--json")
    assert code == 0 and [x["metric"] for x in json.loads(said)["differences"]] == ["exam.colours"]


def test_dead_judge_is_named(two_runs: tuple[Path, Path]) -> None:
    code, said = weitiao("compare", *two_runs, "--judge", "http://127.0.0.1:9", "--out", "record")
    assert code == 2 and "cannot be reached" in said
