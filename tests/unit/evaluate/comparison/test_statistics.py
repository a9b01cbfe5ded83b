"""The tests and intervals of a comparison, held to scipy, to published examples and to simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from weitiao.evaluate.comparison.holm import holm
from weitiao.evaluate.comparison.mcnemar import sign_test, tango_interval
from weitiao.evaluate.comparison.paired_bootstrap import bootstrap_mean
from weitiao.evaluate.comparison.student_t import t_cdf

RANDOM = np.random.default_rng(7)


def test_student_t_as_scipy() -> None:
    for _ in range(1000):
        df, t = float(RANDOM.integers(1, 400)), RANDOM.normal() * 4
        assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-9)


def test_mcnemar_as_scipy() -> None:
    for _ in range(1000):
        wins, losses = (int(x) for x in RANDOM.integers(0, 1500, 2))
        assert sign_test(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    assert sign_test(0, 0) == 1.0


def test_tango_as_published() -> None:
    """Fagerland, Lydersen and Laake 2014, "Recommended tests and confidence intervals for paired binomial proportions",
    table 6: airway hyper-responsiveness before and after a transplantation, n = 21, b = 1, c = 7."""
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_tango_is_symmetric_and_never_empty() -> None:
    for _ in range(300):
        wins, losses, ties = (int(x) for x in RANDOM.integers(0, 40, 3))
        n = wins + losses + ties + 1
        low, high = tango_interval(wins, losses, n)
        assert -1 <= low < high <= 1 and low <= (wins - losses) / n <= high
        assert tango_interval(losses, wins, n) == pytest.approx((-high, -low), abs=1e-9)


def test_holm_as_defined() -> None:
    for _ in range(1000):
        p = RANDOM.uniform(0, 0.2, RANDOM.integers(1, 12))
        order = np.argsort(p)
        steps = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
        expected = np.empty(len(p))
        expected[order] = steps
        assert holm(p.tolist()) == pytest.approx(expected.tolist())


def shares(n: int, won: float, lost: float) -> Callable[[int], tuple[float, tuple[float, float]]]:
    def draw(i: int) -> tuple[float, tuple[float, float]]:
        wins, losses, _ = np.random.default_rng(i).multinomial(n, [won, lost, 1 - won - lost])
        return won - lost, tango_interval(int(wins), int(losses), n)

    return draw


def skewed(n: int) -> Callable[[int], tuple[float, tuple[float, float]]]:
    def draw(i: int) -> tuple[float, tuple[float, float]]:
        random = np.random.default_rng(i)
        found = bootstrap_mean(random.exponential(1.0, n) - random.exponential(1.2, n), draws=1000)
        return -0.2, (found.low, found.high)

    return draw


def clustered(clusters: int) -> Callable[[int], tuple[float, tuple[float, float]]]:
    def draw(i: int) -> tuple[float, tuple[float, float]]:
        random = np.random.default_rng(i)
        sizes = random.integers(1, 10, clusters)
        differences = np.repeat(random.normal(0.1, 0.5, clusters), sizes) + random.normal(0, 1, sizes.sum())
        found = bootstrap_mean(differences, np.repeat(np.arange(clusters), sizes).tolist(), draws=1000)
        return 0.1, (found.low, found.high)

    return draw


@pytest.mark.parametrize(
    "draw",
    [shares(50, 0.2, 0.1), shares(200, 0.05, 0.02), shares(210, 0.1, 0.1), shares(1000, 0.25, 0.2), skewed(50), skewed(200),
     clustered(40), clustered(100)],
)  # fmt: skip
def test_coverage(draw: Callable[[int], tuple[float, tuple[float, float]]]) -> None:
    """93 to 97 % of the 95 % intervals hold the true difference."""
    n = 1500
    hits = sum(low <= truth <= high for truth, (low, high) in map(draw, range(n)))
    assert 0.93 <= hits / n <= 0.97


def test_rows_of_a_cluster_are_not_independent() -> None:
    """With each cluster copied ten times, an interval over rows would be too narrow by sqrt(10)."""
    once = RANDOM.normal(0, 1, 60)
    copies, names = np.repeat(once, 10).tolist(), np.repeat(np.arange(60), 10).tolist()
    plain, by_cluster = bootstrap_mean(copies), bootstrap_mean(copies, names)
    assert (by_cluster.high - by_cluster.low) / (plain.high - plain.low) == pytest.approx(np.sqrt(10), rel=0.1)
    assert by_cluster.p > plain.p


def test_bootstrap_p_value_as_the_t_test() -> None:
    for i in range(40):
        differences = np.random.default_rng(i).normal(0.15, 1, 100)
        assert bootstrap_mean(differences).p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
