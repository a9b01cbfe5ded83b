"""How often the guard skips a sound step: recorded real fine-tuning runs, and synthetic ones."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weitiao.train.stability.guard import MEDIAN_WINDOW, Guard

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.csv"))
ALLOWED = 1 / 10_000  # false alarms a step
Pair = tuple[float, float]
Trace = Callable[[np.random.Generator, int], Pair]


def recorded(path: Path) -> list[Pair]:
    """(loss, gradient norm) of every step."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [(float(loss), float(norm)) for _, loss, norm in (line.split(",") for line in lines)]


def alarms(pairs: Iterable[Pair]) -> list[tuple[int, str]]:
    """(place, action and reason) of every step that is not taken by a fresh guard."""
    guard, step, found = Guard(), 0, []
    for position, (loss, norm) in enumerate(pairs):
        verdict = guard.judge(step + 1, position, loss, norm)
        step += verdict.action == "accept"
        if verdict.action != "accept":
            found.append((position, f"{verdict.action}: {verdict.reason}"))
    return found


def unimodal(random: np.random.Generator, i: int) -> Pair:
    """A loss that falls to 2 with a spread of 0.05; log-normal gradients."""
    return 2.0 + 1.5 * math.exp(-i / 300) + 0.05 * random.standard_normal(), math.exp(0.2 * random.standard_normal())


def hard_domain(random: np.random.Generator, i: int) -> Pair:
    """5 % of the steps from a domain with 1.45 times the loss and 1.6 times the gradient."""
    loss, norm = unimodal(random, i)
    hard = random.random() < 0.05
    return loss * (1.45 if hard else 1.0), norm * (1.6 if hard else 1.0)


def epochs(random: np.random.Generator, i: int) -> Pair:
    """The loss falls by a step at each of nine epochs' ends, as it does when rows are seen again."""
    loss, norm = unimodal(random, i)
    return loss - 0.15 * min(i // 500, 9), norm


def synthetic(trace: Trace, seed: int, steps: int) -> Iterator[Pair]:
    random = np.random.default_rng(seed)
    return (trace(random, i) for i in range(steps))


def test_enough_recorded_steps() -> None:
    """At least 10,000 steps of at least 3 runs, 1,500 of them of the whole model; every figure finite."""
    counts = {path.stem: len(recorded(path)) for path in RECORDED}
    assert len(counts) >= 3 and sum(counts.values()) >= 10_000, counts
    assert sum(n for name, n in counts.items() if not name.endswith("_cut")) >= 1_500, counts
    assert all(math.isfinite(x) for path in RECORDED for pair in recorded(path) for x in pair)


def test_false_alarms_in_real_runs(record_figure: Any) -> None:
    """At most one skip in 10,000 steps over all recordings, and the run never goes back."""
    found = {path.stem: alarms(recorded(path)) for path in RECORDED}
    steps = sum(len(recorded(path)) for path in RECORDED)
    skips = sum(len(x) for x in found.values())
    record_figure(
        "false alarms of the guard, real fine-tuning runs", f"<= {ALLOWED * steps:.1f}, no rollback", skips, steps
    )
    assert skips <= ALLOWED * steps, found
    assert not any(reason.startswith("roll_back") for x in found.values() for _, reason in x), found


@pytest.mark.parametrize("trace", [unimodal, hard_domain, epochs], ids=lambda trace: trace.__name__)
def test_false_alarms_in_synthetic_runs(trace: Trace, record_figure: Any, request: pytest.FixtureRequest) -> None:
    steps = 50_000 if request.config.getoption("--full") else 5_000
    found = alarms(synthetic(trace, 7, steps))
    record_figure(f"false alarms of the guard, synthetic ({trace.__name__})", "0", len(found), steps)
    assert not found


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_diverging_run_detected(path: Path, record_figure: Any) -> None:
    """A guard that never speaks gives no false alarm either: from the middle of each recording on the model is lost, each
    loss is the logarithm of the vocabulary's size or more. The guard skips, asks or goes back within 40 steps."""
    pairs = recorded(path)
    middle, lost = len(pairs) // 2, math.log(49_152)
    assert middle > MEDIAN_WINDOW
    broken = [*pairs[:middle], *((loss + lost, 3 * norm) for loss, norm in pairs[middle:])]
    first = next(place for place, _ in alarms(broken) if place >= middle) - middle
    record_figure(f"steps until a diverged model is detected, {path.stem}", "< 40", first, len(pairs) - middle)
    assert first < 40
