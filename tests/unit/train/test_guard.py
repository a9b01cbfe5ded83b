"""The guard's word on single figures: what is skipped, what is not, and when the run goes back."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from support.faults import Figures, healthy_figures
from weitiao.train.stability.guard import LEARNING, REGIME, Guard


class Trip:
    """A guard and the figures that it was shown; steps count up when they are taken."""

    def __init__(self) -> None:
        self.guard, self.step, self.position = Guard(), 0, 0

    def show(self, loss: float, norm: float) -> str:
        action = self.guard.judge(self.step + 1, self.position, loss, norm).action
        self.step += action == "take"
        self.position += 1
        return action

    def healthy_figures(self, steps: int, seed: int = 0) -> list[str]:
        return [self.show(*figures) for _, figures in zip(range(steps), healthy_figures(seed))]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_non_finite_skipped_without_trace(loss: float, norm: float) -> None:
    """One such figure in a window of means would blind the guard for the whole window."""
    trip = Trip()
    assert set(trip.usual(50)) == {"take"}
    before = asdict(trip.guard)
    assert trip.show(loss, norm) == "skip"
    after = asdict(trip.guard)
    assert {key for key in before if before[key] != after[key]} == {"broken", "sound"}
    assert set(trip.usual(200, seed=1)) == {"take"}


def test_repeated_outliers_skipped() -> None:
    """The first must not hide the later, smaller ones, as it does in a rule of mean and standard deviation."""
    trip = Trip()
    trip.usual(100)
    for pause, (loss, norm) in ((0, (12, 40)), (40, (3, 8)), (80, (2.5, 8)), (120, (1, 8))):
        assert set(trip.usual(pause, seed=pause)) <= {"take"}
        assert trip.show(2.0 * loss, norm) == "skip", (loss, norm)


def test_warmup_skips_only_non_finite() -> None:
    trip = Trip()
    trip.usual(LEARNING - 1)
    assert trip.show(60.0, 40.0) == "take"


def test_hard_domains_not_skipped() -> None:
    """5 % of the steps from a domain with 1.45 times the loss and 1.6 times the gradient; 20,000 steps, no skip."""
    trip, random = Trip(), np.random.default_rng(3)
    for _, (loss, norm) in zip(range(20_000), healthy_figures(4)):
        hard = random.random() < 0.05
        assert trip.show(loss * (1.45 if hard else 1), norm * (1.6 if hard else 1)) == "take"


def learnt(seed: int, wrong: float = 0.05) -> Iterator[Figures]:
    """One row a step: nearly all are learnt, some are still wrong. Like a real run on topics, batch size 1."""
    random = np.random.default_rng(seed)
    for i in itertools.count():
        loss = 2.5 * math.exp(-i / 60) * abs(random.standard_normal()) + 3e-4 * math.exp(random.standard_normal())
        if random.random() < wrong:
            loss = min(random.exponential(1.3), 6.0)
        yield loss, 4 * loss * math.exp(0.3 * random.standard_normal())


@pytest.mark.parametrize("wrong", [0.05, 0.15])
def test_mislabeled_rows_not_skipped(wrong: float) -> None:
    """The median is near nought, and no spread about it says how far a row can lie above; the loss averages 0.1."""
    trip = Trip()
    assert {trip.show(*figures) for _, figures in zip(range(3000), learnt(2, wrong))} == {"take"}
    assert trip.show(60.0, 400.0) == "skip"


def test_recheck_at_loss_near_zero() -> None:
    """From 0.0003 to 0.0006 is no harm, though twice as much; to 3 it is."""
    trip = Trip()
    for _, figures in zip(range(200), learnt(2)):
        trip.show(*figures)
    trip.guard.sound_loss = 3e-4
    assert trip.guard.answer(6e-4).action == "skip" and trip.guard.answer(3.0).action == "back"


def test_falling_loss_and_epoch_drops_not_skipped() -> None:
    trip = Trip()
    for i, (loss, norm) in zip(range(3000), healthy_figures(5)):
        fallen = 1.0 + 3.0 * math.exp(-i / 200) - 0.15 * (i // 600)
        assert trip.show(loss - 2.0 + max(fallen, 0.3), norm) == "take"


def test_recheck_after_five_outliers() -> None:
    trip = Trip()
    trip.usual(60)
    assert [trip.show(20.0, 30.0) for _ in range(5)] == [*["skip"] * 4, "ask"]
    worse, same = trip.guard.answer(3.0), trip.guard.answer(trip.guard.sound_loss)
    assert worse.action == "back" and "now have 3" in str(worse.reason) and same.action == "skip"
    assert trip.guard.answer(math.nan).action == "back"


def test_recheck_uses_rows_before_spike() -> None:
    """The first steps of a broken model may still pass; their rows would call it as good as ever."""
    trip = Trip()
    trip.usual(60)
    assert [trip.show(3.8, 3.0) for _ in range(3)] == ["take"] * 3
    assert trip.guard.sound_loss < 2.3 and trip.guard.sound_position == 63 - 20
    assert [trip.show(20.0, 30.0) for _ in range(5)][-1] == "ask" and trip.guard.answer(3.8).action == "back"


def test_new_regime_accepted() -> None:
    """Twenty outliers in a row, while accepted rows are as good as ever: the data have changed, not the model."""
    trip = Trip()
    trip.usual(60)
    actions = [trip.show(9.0, 30.0) for _ in range(REGIME + 5)]
    assert set(actions[:REGIME]) == {"skip", "ask"} and set(actions[REGIME:]) == {"take"}


def test_rising_average_rolls_back() -> None:
    """Each step is within what is usual, but the run drifts away."""
    trip = Trip()
    trip.usual(100)
    actions = []
    for i, (loss, norm) in zip(range(60), healthy_figures(8)):
        actions.append(trip.show(loss + min(0.04 * i, 1.2), norm))
        if actions[-1] == "back":
            break
    assert actions[-1] == "back" and len(actions) < 50
    assert trip.guard.verified_step <= 105


@pytest.mark.parametrize("jump", [0.54, 0.57, 0.75, 1.5])
def test_checkpoint_inside_spike_never_healthy(jump: float) -> None:
    """A jump that the average needs more than twenty steps to tell: all of them are sound by themselves."""
    trip = Trip()
    trip.usual(100)
    actions = []
    for loss, norm in itertools.islice(healthy_figures(8), 60):
        actions.append(trip.show(loss + jump, norm))
        assert trip.guard.verified_step < 100
        if actions[-1] == "back":
            break
    assert actions[-1] == "back" and set(actions[:-1]) == {"take"}
    assert trip.guard.verified_step >= 70


def test_higher_plateau_becomes_healthy() -> None:
    trip = Trip()
    trip.usual(100)
    for loss, norm in itertools.islice(healthy_figures(8), 300):
        assert trip.show(loss + 0.3, norm) == "take"
    assert trip.guard.verified_step >= 300


@pytest.mark.parametrize("gap", [0, 30])
def test_repeated_non_finite_rolls_back(gap: int) -> None:
    trip, actions = Trip(), []
    trip.usual(40)
    for _ in range(5):
        actions.append(trip.show(math.nan, 1.0))
        trip.usual(gap)
    first = 2 if gap == 0 else 4
    assert actions[:first] == ["skip"] * first and actions[first] == "back"


def test_checkpoint_healthy_after_twenty_sound_steps() -> None:
    trip = Trip()
    trip.usual(30)
    assert trip.guard.verified_step == 10
    trip.show(math.nan, 1.0)
    trip.usual(19)
    assert trip.guard.verified_step == 10  # the proof begins anew
    trip.usual(1)
    assert trip.guard.verified_step == 30


def test_negative_losses_judged() -> None:
    """Rewards and log-likelihoods: a median of -1 must not make every step an outlier."""
    trip = Trip()
    for _, (loss, norm) in zip(range(200), healthy_figures(9, loss=-1.0)):
        assert trip.show(loss, norm) == "take"
    assert trip.show(4.0, 1.0) == "skip"


def test_guard_state_json_roundtrip() -> None:
    """A resumed run judges as the uninterrupted one."""
    one, random = Trip(), np.random.default_rng(1)
    one.usual(90)
    two = Trip()
    two.guard, two.step, two.position = Guard(**json.loads(json.dumps(asdict(one.guard)))), one.step, one.position
    shown = [(20.0, 9.0) if random.random() < 0.1 else figures for _, figures in zip(range(300), healthy_figures(11))]
    assert [one.show(*x) for x in shown] == [two.show(*x) for x in shown]


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
        assert show(loss + 7.0 * rare, norm * (30 if rare else 1), "easy + rare" if rare else "easy") == "take", i
    assert show(7.3, 30.0, "easy") == "skip" and show(7.3, 30.0, "easy + rare") == "take"
    assert show(70.0, 30.0, "easy + rare") == "skip"
    again = Guard(**asdict(guard))
    assert again.judge(500, 500, 7.3, 30.0, "easy + rare") == guard.judge(500, 500, 7.3, 30.0, "easy + rare")
    assert asdict(again) == asdict(guard)
