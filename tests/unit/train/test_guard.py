"""The guard's verdict on single figures: what is skipped, what is not, and when the run rolls back."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from support.faults import Figures, healthy_figures
from weitiao.train.stability.guard import MEDIAN_WINDOW, NEW_REGIME, Guard


class JudgedRun:
    """A guard and the steps that it judged; the step number counts up when a step is accepted."""

    def __init__(self) -> None:
        self.guard, self.step, self.data_step = Guard(), 0, 0

    def judge(self, loss: float, norm: float) -> str:
        action = self.guard.judge(self.step + 1, self.data_step, loss, norm).action
        self.step += action == "accept"
        self.data_step += 1
        return action

    def judge_healthy(self, steps: int, seed: int = 0) -> list[str]:
        return [self.judge(*figures) for _, figures in zip(range(steps), healthy_figures(seed))]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_non_finite_skipped_without_trace(loss: float, norm: float) -> None:
    """One such figure in a window of means would blind the guard for the whole window."""
    run = JudgedRun()
    assert set(run.judge_healthy(50)) == {"accept"}
    before = asdict(run.guard)
    assert run.judge(loss, norm) == "skip"
    after = asdict(run.guard)
    assert {key for key in before if before[key] != after[key]} == {"non_finite", "accepted"}
    assert set(run.judge_healthy(200, seed=1)) == {"accept"}


def test_repeated_outliers_skipped() -> None:
    """The first must not hide the later, smaller ones, as it does in a rule of mean and standard deviation."""
    run = JudgedRun()
    run.judge_healthy(100)
    for pause, (loss, norm) in ((0, (12, 40)), (40, (3, 8)), (80, (2.5, 8)), (120, (1, 8))):
        assert set(run.judge_healthy(pause, seed=pause)) <= {"accept"}
        assert run.judge(2.0 * loss, norm) == "skip", (loss, norm)


def test_warmup_skips_only_non_finite() -> None:
    run = JudgedRun()
    run.judge_healthy(MEDIAN_WINDOW - 1)
    assert run.judge(60.0, 40.0) == "accept"


def test_hard_domains_not_skipped() -> None:
    """5 % of the steps from a domain with 1.45 times the loss and 1.6 times the gradient; 20,000 steps, no skip."""
    run, random = JudgedRun(), np.random.default_rng(3)
    for _, (loss, norm) in zip(range(20_000), healthy_figures(4)):
        hard = random.random() < 0.05
        assert run.judge(loss * (1.45 if hard else 1), norm * (1.6 if hard else 1)) == "accept"


def mostly_fitted(seed: int, wrong: float = 0.05) -> Iterator[Figures]:
    """One row a step: nearly all are fitted, some are still wrong. Like a real run on topics, batch size 1."""
    random = np.random.default_rng(seed)
    for i in itertools.count():
        loss = 2.5 * math.exp(-i / 60) * abs(random.standard_normal()) + 3e-4 * math.exp(random.standard_normal())
        if random.random() < wrong:
            loss = min(random.exponential(1.3), 6.0)
        yield loss, 4 * loss * math.exp(0.3 * random.standard_normal())


@pytest.mark.parametrize("wrong", [0.05, 0.15])
def test_mislabeled_rows_not_skipped(wrong: float) -> None:
    """The median is near zero, and no spread about it says how far a row can lie above; the loss averages 0.1."""
    run = JudgedRun()
    assert {run.judge(*figures) for _, figures in zip(range(3000), mostly_fitted(2, wrong))} == {"accept"}
    assert run.judge(60.0, 400.0) == "skip"


def test_recheck_at_loss_near_zero() -> None:
    """From 0.0003 to 0.0006 is no harm, though twice as much; to 3 it is."""
    run = JudgedRun()
    for _, figures in zip(range(200), mostly_fitted(2)):
        run.judge(*figures)
    run.guard.reference_loss = 3e-4
    assert run.guard.judge_recheck(6e-4).action == "skip" and run.guard.judge_recheck(3.0).action == "roll_back"


def test_falling_loss_and_epoch_drops_not_skipped() -> None:
    run = JudgedRun()
    for i, (loss, norm) in zip(range(3000), healthy_figures(5)):
        fallen = 1.0 + 3.0 * math.exp(-i / 200) - 0.15 * (i // 600)
        assert run.judge(loss - 2.0 + max(fallen, 0.3), norm) == "accept"


def test_recheck_after_five_outliers() -> None:
    run = JudgedRun()
    run.judge_healthy(60)
    assert [run.judge(20.0, 30.0) for _ in range(5)] == [*["skip"] * 4, "recheck"]
    worse, same = run.guard.judge_recheck(3.0), run.guard.judge_recheck(run.guard.reference_loss)
    assert worse.action == "roll_back" and "now have 3" in str(worse.reason) and same.action == "skip"
    assert run.guard.judge_recheck(math.nan).action == "roll_back"


def test_recheck_uses_rows_before_spike() -> None:
    """The first steps of a broken model may still pass; their rows would call it as good as ever."""
    run = JudgedRun()
    run.judge_healthy(60)
    assert [run.judge(3.8, 3.0) for _ in range(3)] == ["accept"] * 3
    assert run.guard.reference_loss < 2.3 and run.guard.reference_window == 63 - 20
    assert [run.judge(20.0, 30.0) for _ in range(5)][-1] == "recheck" and run.guard.judge_recheck(3.8).action == "roll_back"


def test_new_regime_accepted() -> None:
    """Twenty outliers in a row, while accepted rows are as good as ever: the data have changed, not the model."""
    run = JudgedRun()
    run.judge_healthy(60)
    actions = [run.judge(9.0, 30.0) for _ in range(NEW_REGIME + 5)]
    assert set(actions[:NEW_REGIME]) == {"skip", "recheck"} and set(actions[NEW_REGIME:]) == {"accept"}


def test_rising_average_rolls_back() -> None:
    """Each step is within what is usual, but the run drifts away."""
    run = JudgedRun()
    run.judge_healthy(100)
    actions = []
    for i, (loss, norm) in zip(range(60), healthy_figures(8)):
        actions.append(run.judge(loss + min(0.04 * i, 1.2), norm))
        if actions[-1] == "roll_back":
            break
    assert actions[-1] == "roll_back" and len(actions) < 50
    assert run.guard.verified_step <= 105


@pytest.mark.parametrize("jump", [0.54, 0.57, 0.75, 1.5])
def test_checkpoint_inside_spike_never_healthy(jump: float) -> None:
    """A jump that the average needs more than twenty steps to tell: all of them are sound by themselves."""
    run = JudgedRun()
    run.judge_healthy(100)
    actions = []
    for loss, norm in itertools.islice(healthy_figures(8), 60):
        actions.append(run.judge(loss + jump, norm))
        assert run.guard.verified_step < 100
        if actions[-1] == "roll_back":
            break
    assert actions[-1] == "roll_back" and set(actions[:-1]) == {"accept"}
    assert run.guard.verified_step >= 70


def test_higher_plateau_becomes_healthy() -> None:
    run = JudgedRun()
    run.judge_healthy(100)
    for loss, norm in itertools.islice(healthy_figures(8), 300):
        assert run.judge(loss + 0.3, norm) == "accept"
    assert run.guard.verified_step >= 300


@pytest.mark.parametrize("gap", [0, 30])
def test_repeated_non_finite_rolls_back(gap: int) -> None:
    run, actions = JudgedRun(), []
    run.judge_healthy(40)
    for _ in range(5):
        actions.append(run.judge(math.nan, 1.0))
        run.judge_healthy(gap)
    first = 2 if gap == 0 else 4
    assert actions[:first] == ["skip"] * first and actions[first] == "roll_back"


def test_checkpoint_healthy_after_twenty_sound_steps() -> None:
    run = JudgedRun()
    run.judge_healthy(30)
    assert run.guard.verified_step == 10
    run.judge(math.nan, 1.0)
    run.judge_healthy(19)
    assert run.guard.verified_step == 10  # the count of accepted steps starts again
    run.judge_healthy(1)
    assert run.guard.verified_step == 30


def test_negative_losses_judged() -> None:
    """Rewards and log-likelihoods: a median of -1 must not make every step an outlier."""
    run = JudgedRun()
    for _, (loss, norm) in zip(range(200), healthy_figures(9, loss=-1.0)):
        assert run.judge(loss, norm) == "accept"
    assert run.judge(4.0, 1.0) == "skip"


def test_guard_state_json_roundtrip() -> None:
    """A resumed run judges as the uninterrupted one."""
    one, random = JudgedRun(), np.random.default_rng(1)
    one.judge_healthy(90)
    two = JudgedRun()
    two.guard, two.step, two.data_step = Guard(**json.loads(json.dumps(asdict(one.guard)))), one.step, one.data_step
    figures_list = [
        (20.0, 9.0) if random.random() < 0.1 else figures for _, figures in zip(range(300), healthy_figures(11))
    ]
    assert [one.judge(*x) for x in figures_list] == [two.judge(*x) for x in figures_list]


def test_steps_compared_within_task() -> None:
    """A rare task with another loss and a longer gradient is no fault; an outlier among its own steps is."""
    guard, step, figures = Guard(), 0, healthy_figures(loss=0.3)

    def show(loss: float, norm: float, tasks: str) -> str:
        nonlocal step
        step += 1
        return guard.judge(step, step, loss, norm, tasks).action

    for i in range(400):
        loss, norm = next(figures)
        rare = i >= 60 and i % 5 == 0
        assert show(loss + 7.0 * rare, norm * (30 if rare else 1), "easy + rare" if rare else "easy") == "accept", i
    assert show(7.3, 30.0, "easy") == "skip" and show(7.3, 30.0, "easy + rare") == "accept"
    assert show(70.0, 30.0, "easy + rare") == "skip"
    copy = Guard(**asdict(guard))
    assert copy.judge(500, 500, 7.3, 30.0, "easy + rare") == guard.judge(500, 500, 7.3, 30.0, "easy + rare")
    assert asdict(copy) == asdict(guard)
