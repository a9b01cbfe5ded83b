"""Rows in memory through a whole run: written into it, checked, resumed bit-exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.rows import chat_rows
from support.runs import stop_at
from weitiao import check, evaluate, load, resume, train
from weitiao.core.errors import CheckError, Interrupted, RunError
from weitiao.core.events import Step
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.pipeline import assemble

ROWS = chat_rows(24)


def recipe(recipe_dict: dict, tmp_path: Path, name: str) -> dict[str, Any]:
    settings = {**recipe_dict["train"], "steps": 6, "save_every": 1}
    return {**recipe_dict, "data": ROWS, "train": settings, "out": str(tmp_path / name)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "best" / "weights.safetensors")


def test_interrupted_run_resumes_bit_exactly(recipe_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(recipe_dict, tmp_path, "whole"), verbose=False)
    with stop_at(3, monkeypatch), pytest.raises(Interrupted):
        train(recipe(recipe_dict, tmp_path, "part"), verbose=False)
    run = resume(tmp_path / "part", verbose=False)
    expected = weights(whole.folder)
    assert all(torch.equal(x, expected[name]) for name, x in weights(run.folder).items())
    assert [x.step for x in run.events(Step)] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight check finds an error."""
    monkeypatch.setattr(assemble, "preflight_steps", lambda *args: iter([Finding("loss", "error", Message("broken"))]))


def test_run_that_never_began_may_start_again(
    recipe_dict: dict, tmp_path: Path, broken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe(recipe_dict, tmp_path, "run")
    with pytest.raises(CheckError):
        train({**plain, "validation": ROWS[:5]}, verbose=False)
    assert (tmp_path / "run" / "validation.jsonl").exists()
    monkeypatch.undo()
    run = train(plain, verbose=False)
    assert run.is_finished and not (tmp_path / "run" / "validation.jsonl").exists()
    with pytest.raises(RunError, match="holds a run already"):
        train(plain, verbose=False)
    assert train(plain, overwrite=True, verbose=False).is_finished


def test_check_keeps_nothing_and_returns_findings(recipe_dict: dict, tmp_path: Path) -> None:
    findings = check(recipe(recipe_dict, tmp_path, "run"))
    assert len(findings) > 5 and {"fine"} <= {x.level for x in findings} and not (tmp_path / "run").exists()


def test_failed_check_has_all_findings(recipe_dict: dict, tmp_path: Path, broken: None) -> None:
    plain = recipe(recipe_dict, tmp_path, "run")
    with pytest.raises(CheckError) as refused:
        check(plain)
    assert [x.name for x in refused.value.findings if x.level == "error"] == ["loss"] and len(refused.value.findings) > 3
    assert [x.name for x in check(plain, allow=["loss"])] == [x.name for x in refused.value.findings]


def test_callbacks_are_told_every_event(recipe_dict: dict, tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_event(self, run: Any, event: Any) -> None:
            self.events.append(event)

    recorder = Recorder()
    run = train(recipe(recipe_dict, tmp_path, "run"), callbacks=[recorder], verbose=False)
    logged = [x for x in run.events()]
    assert (
        recorder.events == logged[-len(recorder.events) :] and len([x for x in recorder.events if isinstance(x, Step)]) == 6
    )


def test_evaluate_rows_in_memory(recipe_dict: dict, tmp_path: Path) -> None:
    run = train(recipe(recipe_dict, tmp_path, "run"), verbose=False)
    scores = evaluate(run, ROWS[:7], ["loss"])
    assert scores["loss"].n == 7
    assert evaluate(load(run), ROWS[:7], ["loss"])["loss"].value == pytest.approx(scores["loss"].value)
    assert evaluate(run)["loss"].n > 0
