"""A run stopped at each of its steps and resumed: the same weights, moments, random numbers and journal."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.command import write_recipe
from support.proofs import Figure
from support.rows import chat_rows, write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core.errors import Interrupted
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.data.loader import Loader
from weitiao.pipeline import train as pipeline

STEPS = 40
STOPS = (5, 14, 31)
METHODS = ({"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.2}, {"name": "full"})


@pytest.fixture
def recipe(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    """Several epochs, three micro-batches a step with the last one uneven, warm-up and cosine, the best kept."""
    data = write_jsonl(tmp_path / "chat.jsonl", chat_rows(60))
    train = {
        "steps": STEPS,
        "batch_size": 7,
        "micro_batch_tokens": 120,
        "warmup_ratio": 0.2,
        "lr_schedule": "cosine",
        "precision": "fp32",
    }
    more = {"learning_rate": 3e-3, "weight_decay": 0.01, "evaluate_every": 7, "save_every": 9}
    return {
        "base": str(tiny_llama),
        "data": [{"path": str(data)}],
        "validation": 0.1,
        "train": {**train, **more},
        "evaluate": {"metrics": ["loss"], "samples": 1, "max_new_tokens": 2},
        "out": "named-later",
    }


def train(recipe: dict[str, Any], out: Path, again: bool = False) -> Run:
    return pipeline.train(make_recipe({**recipe, "out": str(out)}), Reporter(Console(quiet=True)), again=again)


def micro_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Takes the tokens of each micro-batch of each step that is fetched from now on."""
    fetched: list[list[int]] = []
    real = Loader.__getitem__

    def fetch(self: Loader, i: int) -> list:
        batches = real(self, i)
        fetched.append([batch.tokens for batch in batches])
        return batches

    monkeypatch.setattr(Loader, "__getitem__", fetch)
    return fetched


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_stop_at_every_step_resume_bit_exact(
    method: dict[str, Any],
    recipe: dict[str, Any],
    tmp_path: Path,
    full: bool,
    record_figure: Figure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while step k runs, for every k; the rest in a process that begins with other random numbers."""
    steps = STEPS if full else 18
    recipe = {**recipe, "method": method, "train": {**recipe["train"], "steps": steps}}
    fetched = micro_batches(monkeypatch)
    whole = run_contents(train(recipe, tmp_path / "whole"))
    assert len([x for x in whole["journal"] if x["event"] == "step"]) == steps
    thirds = [sizes for sizes in fetched if len(sizes) == 3 and len(set(sizes)) > 1]
    assert len(thirds) > steps / 2, f"not what this is about: {fetched}"
    stops: Sequence[int] = range(1, steps) if full else (1, 9, 17)
    for step in stops:
        out = tmp_path / f"stopped-{step}"
        with stop_at(step, monkeypatch), pytest.raises(Interrupted) as stopped:
            train(recipe, out)
        assert stopped.value.exit_code == 130
        torch.manual_seed(step * 1000)
        random.seed(step)
        assert_same_run(run_contents(train(recipe, out, again=True)), whole)
    n = len(stops)
    record_figure(f"stopped at every step, {method['name']}", "every stop ends bit-identical", f"{n}/{n}", n)


def torchrun(*words: str | Path) -> subprocess.Popen[str]:
    """`weitiao train WORDS` in two processes."""
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "weitiao"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*several, "train", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_stop_two_processes_resume_bit_exact(
    recipe: dict[str, Any], tmp_path: Path, full: bool, record_figure: Figure
) -> None:
    """Both terminated at a few moments, with dropout: each process has random numbers of its own. The last time, the
    newest state is damaged as well: one of them puts it aside, and both take the next."""
    if not full:
        pytest.skip("the full form only: two processes take long to start")
    file = write_recipe(tmp_path, {**recipe, "method": METHODS[0]})
    first = torchrun(file, f"out={tmp_path / 'whole'}")
    assert first.wait() == 0, first.communicate()[0]
    whole = run_contents(Run(tmp_path / "whole"))
    stops = STOPS
    for step in stops:
        out = tmp_path / f"stopped-{step}"
        running = torchrun(file, f"out={out}")
        wait_for_step(out, step, running)
        running.send_signal(signal.SIGTERM)  # torchrun hands it on to both
        said = running.communicate()[0]
        assert not Run(out).is_finished, said
        if step == stops[-1]:
            (max((out / "checkpoints").glob("step-*")) / "weights.safetensors").write_bytes(b"torn")
        again = torchrun("--resume", out)
        said = again.communicate()[0]
        assert again.returncode == 0 and (step != stops[-1] or "is damaged" in said), said
        assert_same_run(run_contents(Run(out)), whole)
    record_figure("two processes stopped", "every stop ends bit-identical", f"{len(stops)}/{len(stops)}", len(stops))


def wait_for_step(out: Path, step: int, running: subprocess.Popen[str], longest: float = 120) -> None:
    """Until the journal has the line of this step."""
    journal, end = out / "events.jsonl", time.monotonic() + longest
    while time.monotonic() < end and running.poll() is None:
        lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
        if any(x["event"] == "step" and x["step"] >= step for x in map(json.loads, lines)):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")
