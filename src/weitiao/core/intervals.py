"""95 % intervals: what Score (score.py) is made with, in numbers."""

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import NormalDist

import numpy as np

TAIL = 0.025  # on each side of a 95 % interval
NORMAL = 1.959963984540054
DRAWN_AT_ONCE = 2**15  # row numbers

Clusters = Sequence[Hashable]
"""Of each row, the cluster that it belongs to: a document, a conversation, a patient. Rows of one cluster are not
independent of each other. (): every row is on its own."""


def wilson(p: float, n: float, z: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval of a proportion p of n (Wilson 1927).

    Args:
        n: may be an effective number.
        z: the quantile.
    """
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def bootstrap_draws(n: int, draws: int, width: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap draws of n units, [draws, n] in all, some at a time: their memory does not grow with the rows.

    Args:
        width: numbers that a draw takes in memory, if more than n.
    """
    random, at_once = np.random.default_rng(0), max(1, DRAWN_AT_ONCE // max(n, width))
    for start in range(0, draws, at_once):
        yield random.integers(0, n, (min(at_once, draws - start), n))


_KEPT: ContextVar[list[np.ndarray] | None] = ContextVar("kept", default=None)


@contextmanager
def keeping_draws() -> Iterator[list[np.ndarray]]:
    """Inside, the values of each bootstrap are kept, [draws].

    Draws are seeded: the i-th draw of as many rows is of the same rows. The difference of the values of two models that
    were measured on the same rows is that of a paired bootstrap.
    """
    kept: list[np.ndarray] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def keep_draws(values: Sequence[float]) -> None:
    """Keep a bootstrap's values, where somebody wants them."""
    if (kept := _KEPT.get()) is not None:
        kept.append(np.asarray(values, float))


def percentiles(values: Sequence[float], units: int) -> tuple[float, float]:
    """The percentile interval (Efron 1979) of a bootstrap's values, widened for few units.

    The spread of a bootstrap is too small by sqrt((n - 1) / n), and normal where Student's t would be right: the
    percentiles are taken further out by both (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", sec. 5.3).

    Args:
        units: rows, or clusters, that were drawn.
    """
    tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * t_quantile(units - 1)) if units > 1 else TAIL
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def members_of(clusters: Clusters) -> list[list[int]]:
    """The rows of each cluster, in order."""
    members: dict[Hashable, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    return list(members.values())


def sums_by_cluster(rows: np.ndarray, clusters: Clusters) -> np.ndarray:
    """[n, k] -> [clusters, k]."""
    return np.stack([rows[members].sum(0) for members in members_of(clusters)])


def t_quantile(degrees: int) -> float:
    """Student's t that is exceeded with probability TAIL (Abramowitz & Stegun 1964, 26.7.5; from 3 degrees on to 0.1 %).

    >>> [round(t_quantile(x), 3) for x in (4, 9, 19, 199)]
    [2.776, 2.262, 2.093, 1.972]
    """
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**i for i, term in enumerate(terms))
