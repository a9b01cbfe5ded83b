"""Mixed by shares, a run resumes bit-exactly, trains in two processes as in one, and tells what it gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.processes import ForkServer, two_processes
from support.rows import chat_rows, write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core.errors import Interrupted, RunError
from weitiao.core.run import Run


@pytest.fixture
def sources(tmp_path: Path, chat_file: Path) -> list[dict[str, Any]]:
    """A file of few long rows that is to be a third of all tokens, and one of many short ones."""
    long = write_jsonl(tmp_path / "long.jsonl", chat_rows(8, answers=("the lazy dog and the quick fox " * 4,)))
    return [{"path": str(chat_file)}, {"path": str(long), "share": 0.3, "cap": {"epochs": 20}}]


def test_resume_bit_exact(sources: list, train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"data": sources, "train": {"steps": 6, "batch_size": 6, "save_every": 2}}
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    out = str(tmp_path / "stopped")
    for step in (1, 3, 4):
        with stop_at(step, monkeypatch), pytest.raises(Interrupted):
            train_tiny(again=step > 1, **shape, out=out)
        torch.manual_seed(12345)
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


def test_changed_share_is_not_resumed(sources: list, train_tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    shape = {"data": sources, "train": {"steps": 4, "save_every": 1}, "out": str(tmp_path / "stopped")}
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape)
    with pytest.raises(RunError, match="mixing"):
        train_tiny(again=True, **{**shape, "data": [sources[0], {**sources[1], "share": 0.4}]})


def test_two_processes_same_weights_as_one(
    sources: list, fork_server: ForkServer, recipe_dict: dict, tmp_path: Path
) -> None:
    settings = {"steps": 5, "batch_size": 5, "micro_batch_tokens": 60, "optimizer": {"name": "sgd"}, "learning_rate": 0.5}
    recipe = tmp_path / "recipe.yaml"
    train = {**recipe_dict["train"], **settings}
    recipe.write_text(yaml.safe_dump({**recipe_dict, "data": sources, "mixing": {"temperature": 2}, "train": train}))
    fork_server.run("train", recipe, f"out={tmp_path / 'one'}")
    two_processes(fork_server, recipe, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


def test_shares_are_told(sources: list, train_tiny: Any) -> None:
    run: Run = train_tiny(data=sources, train={"steps": 12, "batch_size": 8})
    told = run.read("resolved.json")["mixing"]
    first, second = told["groups"]
    assert second["asked"] == 0.3 and second["given"] == pytest.approx(0.3, abs=0.03)
    assert first["given"] + second["given"] == pytest.approx(1)
    assert second["epochs"] == pytest.approx(first["epochs"] * (0.3 / second["tokens"]) / (0.7 / first["tokens"]), rel=0.1)
    assert run.decisions["mixing"].value == {first["name"]: 0.7, second["name"]: 0.3}


def test_classes_are_balanced(train_tiny: Any, tmp_path: Path) -> None:
    """By class, whatever their rows: nine of ten rows are of one class, and half of the tokens."""
    rows = [
        {"text": f"the quick fox {'box ' * (i % 4)}{i}", "label": "rare" if i % 10 == 0 else "usual"} for i in range(80)
    ]
    file = write_jsonl(tmp_path / "classes.jsonl", rows)
    mixing = {"by": "label", "temperature": 1000}
    train = {"steps": 20, "batch_size": 8}
    run: Run = train_tiny(data=[{"path": str(file)}], objective="classification", mixing=mixing, train=train)
    told = run.read("resolved.json")["mixing"]["groups"]
    assert [x["name"] for x in told] == ["rare", "usual"]
    assert told[0]["rows"] < 10 < told[1]["rows"] and told[0]["given"] == pytest.approx(0.5, abs=0.02)
