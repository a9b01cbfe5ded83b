"""Score: a number with its name, its n and its interval. No figure travels without them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

DRAWS = 2000
FEW = 20  # rows, below which a figure says little, and no difference is called one
LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """One measured figure and its 95 % interval."""

    name: str
    value: float
    n: int
    low: float
    high: float
    higher_is_better: bool = True
    how: str = ""
    """How the interval was made, in a few words."""

    def __str__(self) -> str:
        if self.n == 0:
            return "not measured (n = 0)"
        percent = in_percent(self.name)
        show = (lambda x: f"{100 * x:.1f} %") if percent else (lambda x: f"{x:.3f}")
        return f"{show(self.value)} [{show(self.low)}, {show(self.high)}] n={self.n}"

    def apart_from(self, other: "Score") -> bool:
        """True when the two intervals do not touch."""
        return self.low > other.high or self.high < other.low

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


PERCENT = {
    "accuracy", "exact_match", "f1", "squad_em", "squad_f1", "entity_f1", "entity_precision", "entity_recall",
    "masked_accuracy", "recall_at_10", "wer", "cer",
}  # fmt: skip


def in_percent(name: str) -> bool:
    """Whether a figure is a share: of a task too (spam.accuracy)."""
    return name.rpartition(".")[2] in PERCENT


def proportion(name: str, hits: int, n: int) -> Score:
    """A share of n, with Wilson's interval (Wilson 1927; right at small n and near 0 and 1, where +-1.96 s is not).

    >>> str(proportion("accuracy", 9, 10))
    '90.0 % [59.6 %, 98.2 %] n=10'
    """
    if n == 0:
        return Score(name, math.nan, 0, math.nan, math.nan)
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Score(name, p, n, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)), how="Wilson 95 %")


def bootstrapped(
    name: str,
    items: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    higher_is_better: bool = True,
    draws: int = DRAWS,
) -> Score:
    """Any statistic over items (rows), with a percentile bootstrap over the items (Efron 1979), seed 0."""
    if not items:
        return Score(name, math.nan, 0, math.nan, math.nan, higher_is_better)
    random = np.random.default_rng(0)
    picks = random.integers(0, len(items), (draws, len(items)))
    values = [statistic([items[i] for i in pick]) for pick in picks.tolist()]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    how = f"bootstrap over rows, {draws} draws"
    return Score(name, statistic(items), len(items), float(low), float(high), higher_is_better, how)


def ratio_of_sums(name: str, sums: Sequence[float], counts: Sequence[float], transform: Callable = float) -> Score:
    """sum(sums) / sum(counts), e.g. the loss a token over rows of unequal length; rows are the bootstrap's unit."""
    if not sums or sum(counts) == 0:
        return Score(name, math.nan, 0, math.nan, math.nan, higher_is_better=False)
    top, bottom = np.asarray(sums, float), np.asarray(counts, float)
    picks = np.random.default_rng(0).integers(0, len(top), (DRAWS, len(top)))
    values = top[picks].sum(1) / np.maximum(bottom[picks].sum(1), 1e-12)
    low, high = (transform(float(x)) for x in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    value = transform(float(top.sum() / bottom.sum()))
    return Score(name, value, len(top), low, high, False, f"bootstrap over rows, {DRAWS} draws")


def of_share(score: Score) -> Score:
    """The same figure, known to lie between 0 and 1, and better when high. Where every row has 0, or every row 1, a
    bootstrap sees no spread and is sure of itself at any n; Wilson's interval is not.

    >>> str(of_share(bootstrapped("squad_f1", [1.0] * 15, lambda some: sum(some) / len(some))))
    '100.0 % [79.6 %, 100.0 %] n=15'
    """
    if score.low == score.high and score.value in (0.0, 1.0):
        return proportion(score.name, round(score.value * score.n), score.n)
    return replace(score, higher_is_better=True)


def weighted(name: str, parts: Sequence[tuple[float, Score]]) -> Score:
    """A weighted sum of figures measured on different rows: their intervals' halves are added in quadrature."""
    there = [(weight, x) for weight, x in parts if x.n]
    if not there:
        return Score(name, math.nan, 0, math.nan, math.nan, higher_is_better=False)
    value = sum(weight * x.value for weight, x in there)
    low = math.hypot(*(weight * (x.value - x.low) for weight, x in there))
    high = math.hypot(*(weight * (x.high - x.value) for weight, x in there))
    how = "the tasks' figures, weighted and added; their intervals in quadrature"
    return Score(name, value, sum(x.n for _, x in there), value - low, value + high, there[0][1].higher_is_better, how)


def score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a figure: before, after, the change, and whether the intervals are apart."""
    rows = []
    before, after = scores.get("before", {}), scores.get("after", {})
    for name in after or before:
        a, b = before.get(name), after.get(name)
        row = {"name": name, "before": show(name, a), "after": show(name, b), "change": "", "verdict": ""}
        if a and b and a["n"] and b["n"]:
            change = b["value"] - a["value"]
            row["change"] = f"{100 * change:+.1f} points" if in_percent(name) else f"{change:+.3f}"
            better = (change > 0) == b["higher_is_better"] and change != 0
            apart = b["low"] > a["high"] or b["high"] < a["low"]
            row["verdict"] = ("better" if better else "worse") if apart else "intervals overlap"
            if min(a["n"], b["n"]) < FEW:
                row["verdict"] = f"too few rows (n < {FEW})"
        rows.append(row)
    return rows


def show(name: str, score: dict[str, Any] | None) -> str:
    """'78.5 % [72.3 %, 83.6 %], n = 200'."""
    if not score or not score["n"]:
        return "not measured"
    if in_percent(name):
        value, low, high = (f"{100 * score[key]:.1f} %" for key in ("value", "low", "high"))
    else:
        value, low, high = (f"{score[key]:.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}], n = {score['n']}" if score["n"] > 1 else f"{value}, n = 1: no interval"
