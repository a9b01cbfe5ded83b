"""95 % intervals contain the true value in 93 to 97 % of simulated data sets, of independent rows and of clusters.

Marked full: 1,000 data sets per case; otherwise 120, which show a gross error only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.core.score import Score, mean_of_rows, ratio_of_sums

FEW, FULL = 120, 1000
Draw = Callable[[np.random.Generator], Score]


def proportions(n: int, p: float) -> tuple[Draw, float]:
    return lambda random: mean_of_rows("accuracy", (random.random(n) < p).astype(float)), p


def clustered_proportions(clusters: int, mean_size: int, p: float, spread: float) -> tuple[Draw, float]:
    """Each cluster has its own p, from a beta distribution: the correlation within clusters is 1 / (1 + spread)."""

    def draw(random: np.random.Generator) -> Score:
        sizes = 1 + random.poisson(mean_size - 1, clusters)
        own = random.beta(p * spread, (1 - p) * spread, clusters)
        rows = np.repeat(np.arange(clusters), sizes)
        return mean_of_rows("accuracy", (random.random(len(rows)) < own[rows]).astype(float), rows.tolist())

    return draw, p


def losses(n: int) -> tuple[Draw, float]:
    """Losses per token, skewed, of rows of unequal length."""

    def draw(random: np.random.Generator) -> Score:
        counts = random.integers(5, 60, n)
        return ratio_of_sums("loss", random.gamma(2.0, 0.5, n) * counts, counts)

    return draw, 1.0


def clustered_losses(clusters: int, size: int) -> tuple[Draw, float]:
    def draw(random: np.random.Generator) -> Score:
        rows = np.repeat(np.arange(clusters), size)
        values = random.gamma(4.0, 0.125, clusters)[rows] + random.gamma(4.0, 0.125, len(rows))
        counts = np.full(len(rows), 10.0)
        return ratio_of_sums("loss", values * counts, counts, clusters=rows.tolist())

    return draw, 1.0


def metric(name: str, n: int, cluster_size: int = 1) -> tuple[Draw, float]:
    """Three classes, answered rightly with probability 0.7, with rows of a cluster alike; the true value is that of
    400,000 rows."""
    measure: Any = create(Metric, name)

    def pairs(random: np.random.Generator, count: int) -> list[tuple[Any, Any]]:
        clusters = count // cluster_size
        reference = np.repeat(random.choice(3, clusters, p=[0.5, 0.3, 0.2]), cluster_size)
        ease = np.repeat(random.normal(0, 0.8 if cluster_size > 1 else 0.0, clusters), cluster_size)
        z = random.normal(0, 1, (count, 3))
        z[np.arange(count), reference] += 1.3 + ease
        if measure.reads == "probabilities":
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            return [(dict(zip("abc", row)), ("abc"[r],)) for row, r in zip(p.tolist(), reference)]
        return [(("abc"[a],), ("abc"[r],)) for a, r in zip(z.argmax(1), reference)]

    def draw(random: np.random.Generator) -> Score:
        groups = [i // cluster_size for i in range(n)] if cluster_size > 1 else ()
        return measure.score(pairs(random, n), groups)

    many = pairs(np.random.default_rng(10**6), 400_000 // cluster_size * cluster_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weitiao.core.score.BOOTSTRAP_DRAWS", 1)  # of these, the value alone is needed
        return draw, measure.score(many).value


CASES: dict[str, Callable[[], tuple[Draw, float]]] = {
    "accuracy, 50 rows": lambda: proportions(50, 0.7),
    "accuracy, 210 rows": lambda: proportions(210, 0.81),
    "accuracy, 40 clusters of 5": lambda: clustered_proportions(40, 5, 0.7, 3.0),
    "accuracy, 100 clusters of 3": lambda: clustered_proportions(100, 3, 0.5, 1.0),
    "accuracy, 30 clusters of 20": lambda: clustered_proportions(30, 20, 0.6, 4.0),
    "loss, 50 rows": lambda: losses(50),
    "loss, 210 rows": lambda: losses(210),
    "loss, 30 clusters of 8": lambda: clustered_losses(30, 8),
    "loss, 100 clusters of 4": lambda: clustered_losses(100, 4),
    "f1_macro, 210 rows": lambda: metric("f1_macro", 210),
    "f1_micro, 60 clusters of 4": lambda: metric("f1_micro", 240, 4),
    "f1_macro, 60 clusters of 4": lambda: metric("f1_macro", 240, 4),
    "auroc, 210 rows": lambda: metric("auroc", 210),
    "auroc, 60 clusters of 4": lambda: metric("auroc", 240, 4),
    "average_precision, 210 rows": lambda: metric("average_precision", 210),
}


@pytest.mark.parametrize("simulations", [pytest.param(FULL, marks=pytest.mark.full), FEW])
@pytest.mark.parametrize("case", CASES)
def test_coverage(case: str, simulations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weitiao.core.score.BOOTSTRAP_DRAWS", 600)
    rate = coverage(case, simulations)
    allowed = 0.02 if simulations == FULL else 0.06
    assert abs(rate - 0.95) <= allowed, f"{case}: {100 * rate:.1f} %"


def coverage(case: str, simulations: int) -> float:
    draw, true = CASES[case]()
    random = np.random.default_rng(1)
    made = (draw(random) for _ in range(simulations))
    return sum(x.low <= true <= x.high for x in made) / simulations
