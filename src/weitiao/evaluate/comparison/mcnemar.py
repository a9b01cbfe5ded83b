"""Two models on the same rows, each right or wrong: McNemar's test, exact, and Tango's interval of the difference.

Only the rows on which they differ speak: b rows that only the first has right, c that only the second has right. If
neither is better, c is binomial (b + c, 1/2). McNemar 1947; the exact form is the sign test of Arbuthnott (1710).

The interval of (c - b) / n is the score interval of Tango (1998), "Equivalence test and confidence interval for the
difference in proportions for the paired-sample design", Statistics in Medicine 17, eq. 9 to 12. It is not empty where
b = c = 0.
"""

import math
from collections.abc import Callable
from statistics import NormalDist


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of so many wins and losses, ties left out.

    >>> sign_test(9, 1)
    0.021484375
    """
    n, fewer = wins + losses, min(wins, losses)
    term = total = 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n) if n < 1000 else min(1.0, math.exp(math.log(2 * total) - n * math.log(2)))


def tango_interval(wins: int, losses: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of (wins - losses) / n, of n pairs of rows.

    >>> [round(x, 4) for x in tango_interval(12, 2, 54)]
    [0.0567, 0.3217]
    """
    z, estimate = NormalDist().inv_cdf(0.5 + level / 2), (wins - losses) / n
    low = _crossing(lambda delta: _score(wins, losses, n, delta) - z, -1.0, estimate)
    high = _crossing(lambda delta: _score(wins, losses, n, delta) + z, estimate, 1.0)
    return low, high


def _score(wins: int, losses: int, n: int, delta: float) -> float:
    """Tango's statistic: how many standard errors the difference lies above delta."""
    b = -wins - losses + (2 * n - wins + losses) * delta
    root = math.sqrt(max(b * b + 8 * n * losses * delta * (1 - delta), 0.0))
    q = (root - b) / (4 * n)  # the most likely share of losses if delta is true
    variance, above = n * (2 * q + delta * (1 - delta)), wins - losses - n * delta
    if variance > 1e-12:
        return above / math.sqrt(variance)
    return math.copysign(math.inf, above) if abs(above) > 1e-12 else 0.0


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function changes its sign, to the last bit."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
