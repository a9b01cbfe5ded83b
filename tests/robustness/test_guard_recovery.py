"""Runs that are harmed, over several seeds: guarded they end as the clean run does, unguarded they are visibly worse.

Three harms: five batches with answers of random tokens; a learning rate 200 times too high for five steps; rows of the
data file itself that hold garbage. Tiny model, clipping off where a clip would hide the harm.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.faults import LONG_TRAINING, guarded, raise_learning_rate, random_labels_at, report_recovery
from support.rows import chat_rows, write_jsonl
from support.runs import events
from weitiao.core.batch import Row
from weitiao.data.loader import Loader

DIRTY = {110, 112, 114, 140, 156}
POISONED = {50, 72, 90, 111, 124, 139, 150, 156}
FULL: dict[str, Any] = {"method": "full", "train": {**LONG_TRAINING, "learning_rate": 2e-3}}
UNCLIPPED: dict[str, Any] = {"method": "full", "train": {**LONG_TRAINING, "learning_rate": 2e-3, "max_grad_norm": None}}


@pytest.fixture(params=[1, 2, 3], ids=lambda seed: f"seed-{seed}")
def seed(request: pytest.FixtureRequest) -> int:
    """Of the recipe; the short form takes the second alone, for tests/invariants has the first."""
    if request.param != 2 and not request.config.getoption("--full"):
        pytest.skip("one seed is enough for the short form")
    return request.param


def test_recovers_from_five_random_label_batches(
    train_tiny, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_figure
) -> None:
    runs = {"clean": train_tiny(**UNCLIPPED, seed=seed, out=str(tmp_path / "clean"))}
    for guard in ("on", "off"):
        with monkeypatch.context() as patch:
            random_labels_at(patch, DIRTY)
            runs[guard] = train_tiny(**guarded(UNCLIPPED, guard), seed=seed, out=str(tmp_path / guard))
    assert {x["data_step"] - 1 for x in events(runs["on"], "skip")} == DIRTY
    on, off = report_recovery(record_figure, f"five dirty batches, seed {seed}", 0.01, runs)
    assert abs(on) <= 0.01 and off > 0.03


@pytest.mark.parametrize("shape", [{"train": LONG_TRAINING}, FULL], ids=["lora", "full"])
def test_recovers_from_learning_rate_spike(
    train_tiny, shape: dict[str, Any], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_figure
) -> None:
    runs = {"clean": train_tiny(**shape, seed=seed, out=str(tmp_path / "clean"))}
    for guard in ("on", "off"):
        with monkeypatch.context() as patch:
            raise_learning_rate(patch, begin=80)
            runs[guard] = train_tiny(**guarded(shape, guard), seed=seed, out=str(tmp_path / guard))
    on, off = report_recovery(
        record_figure, f"rate x 200 for five steps, {shape.get('method', 'lora')}, seed {seed}", 0.03, runs
    )
    assert on <= 0.03 and off > 0.1


def test_recovers_from_poisoned_rows(train_tiny, seed: int, tmp_path: Path, record_figure) -> None:
    """Eight rows of 640 hold garbage, met after the first 32 steps, from which the guard learns what is usual; validated
    on rows that are sound."""
    rows, rng = chat_rows(640), random.Random(seed)
    held = write_jsonl(tmp_path / "held.jsonl", chat_rows(700)[660:])
    files = {"clean": write_jsonl(tmp_path / "clean.jsonl", rows)}
    order = Loader(Unread(640), seed, batch_size=4).epoch(0)
    for row in (rows[order[step][0]] for step in POISONED):
        row["messages"][1]["content"] = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(40))
    files["poisoned"] = write_jsonl(tmp_path / "poisoned.jsonl", rows)
    runs, shape = {}, {**UNCLIPPED, "validation": {"path": str(held)}, "seed": seed}
    for name, file, guard in (("clean", "clean", "on"), ("on", "poisoned", "on"), ("off", "poisoned", "off")):
        data = [{"path": str(files[file])}]
        runs[name] = train_tiny(**guarded(shape, guard), data=data, out=str(tmp_path / name))
    assert not events(runs["clean"], "skip")
    assert {x["data_step"] - 1 for x in events(runs["on"], "skip")} >= POISONED
    on, off = report_recovery(record_figure, f"poisoned rows, seed {seed}", 0.01, runs)
    assert on <= 0.01 and off > 0.03


class Unread:
    """Rows of which only the number is known; their order needs no more."""

    def __init__(self, count: int) -> None:
        self.lengths = self.row_ids = np.zeros(count, int)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Row:
        raise NotImplementedError
