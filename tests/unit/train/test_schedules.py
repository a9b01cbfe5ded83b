"""The learning rate is a pure function of the step."""

import pytest

from weitiao.train.schedules import FINAL_RATIO, rate_at


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warmup_linear(schedule: str) -> None:
    rates = [rate_at(s, 100, 2e-4, 0.1, schedule) for s in range(100)]
    assert rates[:10] == pytest.approx([2e-4 * (s + 1) / 11 for s in range(10)])
    assert rates[10] == pytest.approx(2e-4) and max(rates) == rates[10]
    assert rates[0] > 0, "a first step at learning rate zero is wasted"


def test_cosine_to_one_tenth() -> None:
    rates = [rate_at(s, 101, 1.0, 0.0, "cosine") for s in range(102)]
    assert rates[0] == 1.0 and rates[101] == pytest.approx(FINAL_RATIO) and rates[100] > FINAL_RATIO
    assert all(a > b for a, b in zip(rates, rates[1:]))
    assert rate_at(50, 100, 1.0, 0.0, "cosine") == pytest.approx((1 + FINAL_RATIO) / 2)


def test_linear_to_zero() -> None:
    rates = [rate_at(s, 10, 1.0, 0.2, "linear") for s in range(10)]
    assert rates[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    assert rate_at(10, 10, 1.0, 0.2, "linear") == 0


def test_constant_schedule() -> None:
    assert {rate_at(s, 50, 0.3, 0.1, "constant") for s in range(5, 50)} == {0.3}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (3, 0.99)])
def test_short_run_schedule(schedule: str, steps: int, warmup: float) -> None:
    assert all(0 < rate_at(s, steps, 1.0, warmup, schedule) <= 1 for s in range(steps))
