"""How far judges agree beyond chance: Krippendorff's alpha of any number of them, Cohen's kappa of two."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 1000


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float:
    """Alpha of nominal values, with any number of judges a unit (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability", sec. C): 1 - observed / expected disagreement. nan: nothing was judged twice; 1: all say the same.

    >>> round(krippendorff_alpha([["a", "a"], ["a", "b"], ["b", "b"], ["b", "b"]]), 4)
    0.5333

    Args:
        units: of each item, what its judges said.
    """
    coincidences: dict[tuple[Hashable, Hashable], float] = {}
    totals: Counter[Hashable] = Counter()
    for said in units:
        m = len(said)
        if m < 2:
            continue
        counts = Counter(said)
        for a, x in counts.items():
            totals[a] += x
            for b, y in counts.items():
                coincidences[a, b] = coincidences.get((a, b), 0.0) + x * (y - (a == b)) / (m - 1)
    n = sum(totals.values())
    if n < 2:
        return float("nan")
    observed = sum(x for (a, b), x in coincidences.items() if a != b) / n
    expected = (n * n - sum(x * x for x in totals.values())) / (n * (n - 1))
    return 1.0 if expected == 0 else 1 - observed / expected


def alpha_interval(units: Sequence[Sequence[Hashable]], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of alpha, by a bootstrap over units that were judged at least twice; nan where there are few."""
    judged = [x for x in units if len(x) > 1]
    if len(judged) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, len(judged), (DRAWS, len(judged)))
    low, high = np.quantile([krippendorff_alpha([judged[i] for i in x]) for x in picks.tolist()], [0.025, 0.975])
    return float(low), float(high)


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Kappa of two judges (Cohen 1960): (agreement - chance) / (1 - chance). nan: both always say one and the same.

    >>> cohen_kappa([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")])
    0.5
    """
    n = len(pairs)
    if not n:
        return float("nan")
    one, two = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    agreement, chance = sum(a == b for a, b in pairs) / n, sum(one[x] * two[x] for x in one) / n**2
    return float("nan") if chance == 1 else (agreement - chance) / (1 - chance)
