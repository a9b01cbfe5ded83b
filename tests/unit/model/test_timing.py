"""Timing: amounts of work, medians, workloads that take turns, and the load of other programs."""

import time

import pytest
import torch

from weitiao.model.profiling.timing import (
    PASSES,
    BackgroundLoad,
    Workload,
    attention_workload,
    combined_rate,
    copy_workload,
    matmul_workload,
    measure,
    three_digits,
)

CPU = torch.device("cpu")


def test_amounts_equal_formula() -> None:
    assert matmul_workload((8, 4), 16, torch.float32, CPU, PASSES).amount == 3 * 2 * 16 * 8 * 4
    assert matmul_workload((8, 4), 16, torch.float32, CPU, ("forward",)).amount == 2 * 16 * 8 * 4
    assert copy_workload(1, CPU).amount == 2 * 2**20
    forward = attention_workload((2, 6, 4, 2, 8), True, torch.float32, CPU, False)
    assert forward.amount == 4 * 2 * 4 * 8 * 21
    assert attention_workload((2, 6, 4, 2, 8), False, torch.float32, CPU, True).amount == 3 * 4 * 2 * 4 * 8 * 36
    forward.run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_timing_draws_no_random_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    workloads = [
        matmul_workload((8, 4), 16, dtype, CPU),
        attention_workload((1, 8, 2, 2, 8), True, dtype, CPU, True),
        copy_workload(1, CPU),
    ]
    samples = measure(workloads, CPU, 0.05)
    assert torch.equal(before, torch.get_rng_state())
    assert len({len(x) for x in samples}) == 1 and all(x > 0 for seconds in samples for x in seconds)


def test_workloads_alternate_slow_ones_once() -> None:
    order: list[str] = []
    workloads = [Workload(lambda name=name: (order.append(name), time.sleep(0.003)), 1.0) for name in "ab"]
    samples = measure(workloads, CPU, 0.05)
    assert order == ["a", "b"] * (len(order) // 2) and len(samples[0]) >= 3
    assert measure(workloads, CPU, 0.0) == [[pytest.approx(0.003, abs=0.05)]] * 2


def test_rate_of_several_workloads() -> None:
    workloads = [Workload(lambda: None, 2e9, 3), Workload(lambda: None, 1e9, 1)]
    rate = combined_rate(workloads, [[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    assert (rate.median, rate.low, rate.high, rate.n) == (7 / 7, 7 / 13, 7 / 4, 3)
    assert str(rate) == "1 [0.538, 1.75]" and rate.as_json()["n"] == 3


def test_rate_figures() -> None:
    assert [three_digits(x) for x in (1234.5, 61.23, 0.01234)] == ["1,234", "61.2", "0.0123"]


def test_busy_neighbors_share() -> None:
    load = BackgroundLoad()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0 <= load.share() <= 1
