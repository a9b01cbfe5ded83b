"""What metrics over numbers share: pairs of predicted and right numbers, and a bootstrap over rows."""

from collections.abc import Callable, Sequence

import numpy as np

from weitiao.core.score import Score, bootstrapped

Numbers = Sequence[float]
Statistic = Callable[[np.ndarray, np.ndarray], float]


def score_numbers(
    name: str, pairs: Sequence[tuple[Numbers, Numbers]], statistic: Statistic, higher_is_better: bool
) -> Score:
    """A statistic of one number a row; of several, the mean of each one's.

    Args:
        pairs: (said, right) of each row, each with K numbers.
        statistic: (said [n], right [n]) -> a figure.

    Raises:
        ValueError: the pairs are not numbers.
    """
    if any(isinstance(x, str) or not all(isinstance(y, (int, float)) for y in x) for pair in pairs[:1] for x in pair):
        raise ValueError(
            f"metric {name} compares numbers, and this objective gives none; take it for objective: regression"
        )
    said, right = (np.array([pair[i] for pair in pairs], np.float64) for i in (0, 1))  # [n, K]

    def of(rows: Sequence[int]) -> float:
        picked = np.asarray(rows)
        return float(np.mean([statistic(said[picked, k], right[picked, k]) for k in range(said.shape[1])]))

    return bootstrapped(name, range(len(pairs)), of, higher_is_better)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of [n] and [n]; 0 where one of them is the same all over, which tells nothing of the other."""
    a, b = a - a.mean(), b - b.mean()
    lengths = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
    """[n]: 1 for the smallest; equal ones share the mean of their ranks.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, which, many = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(many) - (many - 1) / 2)[which]
