"""`weitiao runs`: a row a Run, read quickly from plain records."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weitiao.core.events import End, Phase, Start, Step, Validation, as_json
from weitiao.core.run_table import list_runs

RECIPE = "base: a\nmethod:\n  name: lora\n  rank: 8\nobjective: sft\n"
SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
TIME = "2026-01-01T00:00:00+00:00"


def make_run(folder: Path, steps: int = 300) -> None:
    """A finished Run's records, as training writes them."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    scores = {"before": {"loss": SCORE, "accuracy": SCORE}, "after": {"loss": SCORE, "accuracy": {**SCORE, "value": 0.75}}}
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / ".lock").touch()
    events = [Start(TIME, "a", "lora", "sft")]
    for i in range(1, steps + 1):
        events.append(Step(i, i, 2.0 / i, 1.0, 1e-3, 4096, 1024, 0.51))
        if i % 30 == 0:
            events.append(Validation(i, i, 1.0, {"loss": SCORE, "drift": SCORE}, 0.1))
    events += [End("finished", steps, steps, TIME), Phase("report", "start", TIME), Phase("report", "end", TIME, 0.1)]
    (folder / "events.jsonl").write_text("".join(json.dumps(as_json(x)) + "\n" for x in events))


def test_row_of_a_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (row,) = list_runs(tmp_path)
    assert (row.run, row.method, row.objective, row.metric, row.before, row.after) == (
        "a", "lora", "sft", "accuracy", 0.5, 0.75,
    )  # fmt: skip
    assert row.status and row.status.state == "finished" and str(row.status_message) == "finished"
    record = json.loads(json.dumps(row.as_json()))
    assert (record["status"], record["step"], record["error"]) == ("finished", 300, None)


def test_run_without_events_is_read_from_its_recipe(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "a" / "events.jsonl").unlink()
    (tmp_path / "a" / "scores.json").unlink()
    (row,) = list_runs(tmp_path)
    assert (row.method, row.objective, row.metric, row.after) == ("lora", "sft", "", None)
    assert row.status and row.status.state == "no_step"


@pytest.mark.parametrize(("name", "text"), [("recipe.yaml", "nonsense: ["), ("recipe.yaml", "3"), ("scores.json", "{")])
def test_broken_run_does_not_hide_the_others(tmp_path: Path, name: str, text: str) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "a" / "events.jsonl").unlink()
    (tmp_path / "a" / name).write_text(text)
    broken, whole = list_runs(tmp_path)
    assert str(broken.status_message).startswith("cannot be read: ") and broken.as_json()["error"]
    assert whole.status and whole.status.state == "finished"


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.full)])
def test_many_runs_listed_quickly(tmp_path: Path, count: int) -> None:
    """1,000 Runs of 300 steps in a second on two quiet cores; here with room for a busy machine."""
    make_run(tmp_path / "0")
    records = {file.name: file.read_bytes() for file in (tmp_path / "0").iterdir()}
    for i in range(1, count):
        (tmp_path / str(i)).mkdir()
        for name, content in records.items():
            (tmp_path / str(i) / name).write_bytes(content)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        assert len(list_runs(tmp_path)) == count
        seconds.append(time.process_time() - started)
    assert min(seconds) <= count / 1000


def test_listing_imports_neither_torch_nor_pydantic() -> None:
    code = "import sys, weitiao.core.run_table; "
    code += "print(sorted({'torch', 'transformers', 'pydantic', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
