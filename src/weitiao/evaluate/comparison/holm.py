"""Holm's adjustment: many tests at once, and the chance of a single false alarm among them stays at 5 %.

Holm 1979, "A simple sequentially rejective multiple test procedure". The smallest of m p-values counts m-fold, the next
m - 1-fold, and so on; none counts less than a smaller one.
"""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """The adjusted p-values, in the order of the p-values.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
