"""Bradley-Terry: one strength for each of several models, from who beat whom.

    P(a beats b) = exp(s_a) / (exp(s_a) + exp(s_b))

Bradley & Terry 1952; a tie counts half for each. The maximum of the likelihood is found by the iteration of Hunter (2004),
"MM algorithms for generalized Bradley-Terry models", eq. 3. Half a win is added to either side of every pair of models
that was judged, so that a model which never loses has a finite strength. Intervals: a bootstrap over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRIOR, DRAWS, ITERATIONS, TOLERANCE = 0.5, 500, 10_000, 1e-10
Outcome = tuple[int, str, str, float]
"""(prompt, first, second, 1 the first is better, 0 the second, 0.5 neither)."""


@dataclass(frozen=True)
class Strength:
    """A model's strength in logits; the first model's is 0."""

    name: str
    value: float
    low: float
    high: float
    judged: int
    """Comparisons that it was in."""


def strengths(outcomes: Sequence[Outcome], names: Sequence[str], seed: int = 0) -> list[Strength]:
    """The strength of each model, with its 95 % interval."""
    index = {name: i for i, name in enumerate(names)}
    prompts = sorted({x[0] for x in outcomes})
    by_prompt = np.zeros((len(prompts), len(names), len(names)))  # [prompts, winner, loser]
    row = {prompt: i for i, prompt in enumerate(prompts)}
    for prompt, first, second, won in outcomes:
        a, b = index[first], index[second]
        by_prompt[row[prompt], a, b] += won
        by_prompt[row[prompt], b, a] += 1 - won
    values = fitted(by_prompt.sum(0))
    picks = np.random.default_rng(seed).integers(0, len(prompts), (DRAWS, len(prompts))) if len(prompts) > 1 else []
    drawn = np.array([fitted(by_prompt[x].sum(0)) for x in picks]).reshape(-1, len(names))
    bounds = np.quantile(drawn, [0.025, 0.975], axis=0) if len(drawn) else np.full((2, len(names)), np.nan)
    counts = by_prompt.sum(0)
    judged = (counts + counts.T).sum(1)
    return [
        Strength(name, float(values[i]), float(bounds[0, i]), float(bounds[1, i]), round(judged[i]))
        for i, name in enumerate(names)
    ]


def fitted(wins: np.ndarray) -> np.ndarray:
    """Strengths [models] of wins [winner, loser], the first one's 0."""
    compared = (wins + wins.T) > 0
    w = wins + PRIOR * compared
    games, won = w + w.T, w.sum(1)
    p = np.ones(len(w))
    for _ in range(ITERATIONS):
        new = won / np.maximum((games / (p[:, None] + p[None, :])).sum(1), 1e-300)
        new = np.where(won > 0, new / new[0] if new[0] > 0 else new, 1.0)
        if np.abs(np.log(new) - np.log(p)).max() < TOLERANCE:
            p = new
            break
        p = new
    return np.log(p) - np.log(p[0])
