"""Faults put into a run on purpose, which the guard must catch, and what they cost."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.runs import events, final_loss
from weitiao.core.batch import Batch
from weitiao.core.registry import find_module
from weitiao.core.run import Run
from weitiao.pipeline import train as pipeline
from weitiao.train.settings import Plan
from weitiao.train.step import Step

LONG_TRAINING = {
    "steps": 160,
    "batch_size": 4,
    "evaluate_every": 20,
    "save_every": 10,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.0,
}
Figures = tuple[float, float]


def loop_is_running(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the training loop runs (preflight computes gradients, too)."""
    real, runs = pipeline.train_loop, [False]

    def loop(*words: Any) -> None:
        runs[0] = True
        try:
            real(*words)
        finally:
            runs[0] = False

    monkeypatch.setattr(pipeline, "train_loop", loop)
    return lambda: runs[0]


def random_labels(window: list[Batch], seed: int) -> list[Batch]:
    """The same rows with answers of random tokens."""
    random, batches = torch.Generator().manual_seed(seed), []
    for batch in window:
        labels = batch.labels.clone()
        supervised = labels != -100
        labels[supervised] = torch.randint(3, 320, (int(supervised.sum()),), generator=random)
        batches.append(replace(batch, labels=labels))
    return batches


def random_labels_at(patch: pytest.MonkeyPatch, positions: set[int]) -> None:
    """The labels of these steps' rows are random tokens."""
    from weitiao.data.loader import Loader

    real = Loader.__getitem__

    def getitem(self: Loader, i: int) -> list[Batch]:
        window = real(self, i)
        return random_labels(window, i) if i in positions else window

    patch.setattr(Loader, "__getitem__", getitem)


def raise_learning_rate(monkeypatch: pytest.MonkeyPatch, begin: int, steps: int = 5, factor: float = 200.0) -> None:
    """The learning rate is `factor` times too high for some steps, also if they are repeated."""
    module, real, now = find_module(Step, "accumulate"), Plan.rate_at, [0]
    taking, learning = module.compute_gradients, loop_is_running(monkeypatch)

    def take(*words: Any) -> Any:
        now[0] += learning()
        return taking(*words)

    monkeypatch.setattr(module, "compute_gradients", take)
    wrong = range(begin, begin + steps)
    monkeypatch.setattr(Plan, "rate_at", lambda self, step: real(self, step) * (factor if now[0] in wrong else 1.0))


def guarded(shape: dict[str, Any], guard: str) -> dict[str, Any]:
    return {**shape, "train": {**shape["train"], "guard": guard}}


def relative_increase(run: Run, clean: Run) -> float:
    """Of the final validation loss, over that of the clean run."""
    return final_loss(run) / final_loss(clean) - 1


def report_recovery(record_figure: Any, harm: str, asked: float, runs: dict[str, Run]) -> tuple[float, float]:
    on, off = (relative_increase(runs[guard], runs["clean"]) for guard in ("on", "off"))
    returns = len(events(runs["on"], "rollback"))
    measured = f"{on:+.2%} guarded ({returns} returns), {off:+.1%} unguarded"
    record_figure(f"{harm}: validation loss against the clean run", f"within {asked:.0%} guarded", measured, 1)
    assert returns <= 2
    return on, off


def healthy_figures(seed: int = 0, loss: float = 2.0, spread: float = 0.05) -> Iterator[Figures]:
    """Losses about `loss`, gradients about 1 with a log-normal spread."""
    random = np.random.default_rng(seed)
    while True:
        yield loss + spread * random.standard_normal(), math.exp(0.2 * random.standard_normal())
