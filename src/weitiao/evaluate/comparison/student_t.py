"""Student's t distribution, for p-values on few rows.

By the incomplete beta function, in Lentz's continued fraction (Press et al. 2007, "Numerical Recipes", sec. 6.4, 6.14.4).
"""

import math

ITERATIONS, EPSILON, TINY = 300, 1e-15, 1e-300


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) with df degrees of freedom.

    >>> round(t_cdf(2.093024, 19), 6)
    0.975
    """
    tail = 0.5 * _incomplete_beta(0.5 * df, 0.5, df / (df + t * t))
    return tail if t < 0 else 1.0 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), regularized."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d, c = 1.0 / _nonzero(1 + step * d), _nonzero(1 + step / c)
            value *= c * d
        if abs(c * d - 1) < EPSILON:
            break
    return value


def _nonzero(x: float) -> float:
    return x if abs(x) > TINY else TINY
