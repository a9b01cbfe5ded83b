"""The trainer suite in its short form: both sides start, reach the same losses, and finished trainings are saved."""

import datetime
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import make_small_t5
import prepare_dates
from support.rows import write_jsonl

ROOT = Path(__file__).parents[3]
ROWS = 64  # one batch, so that both sides have the same rows in each step, in any order
TOLERANCE = 1e-5  # nats per token; 9e-7 here, and 9e-3 with a 1 % higher learning rate


def bench(results: Path, *arguments: str) -> dict:
    """The saved results of a short run."""
    command = [sys.executable, "-m", "bench.trainer", "--threads", "1", "--results", str(results), *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((results / "trainer_short.json").read_text())


@pytest.fixture
def dates(tmp_path: Path) -> Path:
    """A data folder with dates and a T5 of one layer, without dropout: nothing is left to chance but the rows' order."""
    dice = random.Random(0)
    days = [datetime.date(1950, 1, 1) + datetime.timedelta(dice.randrange(36_524)) for _ in range(2 * ROWS)]
    rows = [prepare_dates.row(day, dice) for day in days]
    write_jsonl(tmp_path / "dates_train.jsonl", rows[:ROWS])
    write_jsonl(tmp_path / "dates_test.jsonl", rows[ROWS:])
    letters = sorted({letter for row in rows for text in row.values() for letter in text})
    model = tmp_path / "small_t5"
    make_small_t5.make(model, letters, layers=1, width=32, heads=2, seed=1)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.0}))
    return tmp_path


def mean_of(fraction: str) -> float:
    """'30.5/11' -> 2.77."""
    numerator, denominator = fraction.split("/")
    return float(numerator) / float(denominator)


@pytest.mark.slow
def test_same_losses_on_both_sides(dates: Path, tmp_path: Path) -> None:
    """Same start, rows, rate, schedule, clip and optimizer: the same loss of every held-out row, before and after."""
    arguments = ("--tasks", "seq2seq", "--limit", str(ROWS), "--grouped", "0", "--data", str(dates))
    first = bench(tmp_path / "results", *arguments)
    case = first["cases"]["seq2seq"]
    ours, theirs = case["weitiao"]["0"], case["Trainer"]["0"]
    assert ours["steps"] == theirs["steps"] == 2 and "grouped" not in case
    assert abs(ours["before"] - theirs["before"]) < TOLERANCE
    losses = [np.array([mean_of(x) for x in training["rows"]["loss"].split()]) for training in (ours, theirs)]
    assert len(losses[0]) == len(losses[1]) == ROWS and np.abs(losses[0] - losses[1]).max() < TOLERANCE
    assert ours["before"] - losses[0].mean() > 0.1  # the loss falls
    assert bench(tmp_path / "results", *arguments) == first  # nothing is measured twice
    assert "| seq2seq | loss | weitiao |" in (tmp_path / "results" / "trainer_short.md").read_text()


@pytest.mark.full
@pytest.mark.real
def test_every_bench_task_runs(tmp_path: Path) -> None:
    """On the real rows, which the scripts make."""
    for script in ("spam", "ner", "qa", "dates"):
        subprocess.run([sys.executable, str(ROOT / "quickstart" / f"prepare_{script}.py")], check=True)
    for script in ("bert", "t5"):
        subprocess.run([sys.executable, str(ROOT / "quickstart" / f"make_small_{script}.py")], check=True)
    cases = bench(tmp_path, "--limit", "16")["cases"]
    partial = ["classification, LoRA", "classification, top layer", "sft, top 4 layers"]
    assert list(cases) == ["classification", "tagging", "question answering", "seq2seq", *partial]
    for name, case in cases.items():
        assert list(case) == ["Trainer", "weitiao", "grouped"], name
        counts = {len(text.split()) for sides in case.values() for x in sides.values() for text in x["rows"].values()}
        assert counts == {16} and all(x["seconds"] > 0 for sides in case.values() for x in sides.values())
