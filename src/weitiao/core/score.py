"""Score: a number with its name, its n and its 95 % confidence interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from weitiao.core.intervals import (
    NORMAL,
    Clusters,
    bootstrap_draws,
    keep_draws,
    members_of,
    percentiles,
    sums_by_cluster,
    t_quantile,
    wilson,
)
from weitiao.core.messages import Message, joined
from weitiao.core.row_count import row_count

BOOTSTRAP_DRAWS = 2000
MIN_ROWS = 20  # below this many rows, a score says little and no difference is reported

PERCENT = {
    "accuracy", "exact_match", "f1", "squad_em", "squad_f1", "entity_f1", "entity_precision", "entity_recall",
    "masked_accuracy", "recall_at_10", "wer", "cer", "f1_micro", "f1_macro", "f1_weighted", "precision_micro",
    "precision_macro", "precision_weighted", "recall_micro", "recall_macro", "recall_weighted", "json_valid",
    "json_schema_valid", "code_pass", "code_compiles", "refusal_recall", "over_refusal",
}  # fmt: skip

Interval = Literal["", "wilson", "wilson_clusters", "bootstrap", "bootstrap_clusters", "jackknife", "quadrature"]
INTERVALS: dict[str, Message] = {
    "": Message(""),
    "wilson": Message("Wilson 95 %"),
    "wilson_clusters": Message("Wilson 95 %, with as many rows as the groups are worth"),
    "bootstrap": Message("bootstrap over rows"),
    "bootstrap_clusters": Message("bootstrap over groups of rows"),
    "jackknife": Message("jackknife: the value without each row, or group, in turn"),
    "quadrature": Message("weighted sum of the tasks' scores; their intervals are added in quadrature"),
}


@dataclass(frozen=True)
class Score:
    """One measured value and its 95 % confidence interval."""

    name: str
    value: float
    n: int
    """Number of rows."""
    low: float
    high: float
    higher_is_better: bool | None = True
    """None: neither is better (the length of an answer)."""
    interval: Interval = ""
    """How the interval was computed."""
    left_out: int = 0
    """Number of rows that were to be measured too and were not: `notes` says why."""
    clusters: int = 0
    """Number of groups that the rows belong to; 0: every row is on its own."""
    notes: tuple[Message, ...] = ()
    """What a reader of the value must know: rows left out, answers cut off, the classes that are averaged."""

    def __str__(self) -> str:
        return format_score(self.name, self.as_json())

    @property
    def total(self) -> int:
        """Number of rows that were to be measured."""
        return self.n + self.left_out

    def differs_from(self, other: "Score") -> bool:
        """True if the two intervals do not overlap."""
        return self.low > other.high or self.high < other.low

    def as_json(self) -> dict[str, Any]:
        """As scores.json has it; `clusters`, `total`, `left_out` and `notes` where there is something to say."""
        record = asdict(self)
        if not self.clusters:
            del record["clusters"]
        left_out, notes = record.pop("left_out"), [x.as_json() for x in record.pop("notes")]
        return {**record, "total": self.total, "left_out": left_out, "notes": notes} if left_out or notes else record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Score":
        """The score of a record of scores.json."""
        values = {key: value for key, value in record.items() if key != "total"}
        return cls(**{**values, "notes": tuple(Message.from_json(x) for x in record.get("notes", ()))})

    @property
    def interval_description(self) -> Message:
        """How the interval was computed, in words."""
        return INTERVALS[self.interval]


def not_measured(name: str, higher_is_better: bool | None = True) -> Score:
    """The score of no rows."""
    return Score(name, math.nan, 0, math.nan, math.nan, higher_is_better)


def is_percentage(name: str) -> bool:
    """Whether a metric is a fraction shown in percent; also a task's metric (spam.accuracy), an exam's (exam.mmlu) and a
    behaviour's."""
    return name.rpartition(".")[2] in PERCENT or name.startswith(("exam.", "behaviour."))


def proportion(name: str, hits: int, n: int) -> Score:
    """A fraction of n with Wilson's interval (Wilson 1927; correct for small n and near 0 and 1, unlike +-1.96 s).

    >>> str(proportion("accuracy", 9, 10))
    '90.0 % [59.6, 98.2], n = 10'
    """
    if n == 0:
        return not_measured(name)
    low, high = wilson(hits / n, n, NORMAL)
    return Score(name, hits / n, n, low, high, interval="wilson")


def mean_of_rows(
    name: str,
    values: Sequence[float] | np.ndarray,
    clusters: Clusters = (),
    higher_is_better: bool | None = True,
) -> Score:
    """The mean of a value per row: Wilson's interval where each row is right (1) or wrong (0), otherwise a bootstrap.

    Where rows belong to clusters, Wilson's interval is that of the effective number of rows n p (1 - p) / v, with v the
    variance of the mean over clusters, and Student's t with clusters - 1 degrees of freedom in place of the normal
    quantile (Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", sec. 2). All right or all wrong: as many rows as there are clusters.

    >>> str(mean_of_rows("accuracy", [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]))
    '80.0 % [49.0, 94.3], n = 10'
    >>> str(mean_of_rows("accuracy", [1, 1, 1, 1, 0, 0, 1, 1, 1, 1], clusters="aabbccddee"))
    '80.0 % [22.3, 98.2], n = 10'
    """
    y = np.asarray(values, float)
    if not len(y):
        return not_measured(name, higher_is_better)
    if not np.isin(y, (0.0, 1.0)).all():
        return replace(ratio_of_sums(name, y, np.ones(len(y)), clusters=clusters), higher_is_better=higher_is_better)
    if not clusters:
        return replace(proportion(name, int(y.sum()), len(y)), higher_is_better=higher_is_better)
    sums = sums_by_cluster(np.stack([y, np.ones(len(y))], 1), clusters)  # [clusters, (hits, rows)]
    p, num = float(y.mean()), len(sums)
    variance = float(((sums[:, 0] - p * sums[:, 1]) ** 2).sum()) / len(y) ** 2 * num / max(num - 1, 1)
    n = min(p * (1 - p) / variance, len(y)) if variance > 0 else num
    low, high = wilson(p, n, t_quantile(num - 1)) if num > 1 else (0.0, 1.0)
    return Score(name, p, len(y), low, high, higher_is_better, "wilson_clusters", clusters=num)


def bootstrapped(
    name: str,
    items: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    higher_is_better: bool = True,
    draws: int | None = None,
    clusters: Clusters = (),
) -> Score:
    """Any statistic over items (rows), with a bootstrap over the items, or over their clusters, seed 0.

    Args:
        draws: default: BOOTSTRAP_DRAWS.
        clusters: whole clusters are drawn (Davison & Hinkley 1997, sec. 3.8).
    """
    if not items:
        return not_measured(name, higher_is_better)
    members = members_of(clusters) if clusters else [[i] for i in range(len(items))]
    picks = (pick for block in bootstrap_draws(len(members), draws or BOOTSTRAP_DRAWS) for pick in block.tolist())
    values = [statistic([items[i] for cluster in pick for i in members[cluster]]) for pick in picks]
    return _with_percentiles(name, statistic(items), values, len(items), len(members) if clusters else 0, higher_is_better)


def ratio_of_sums(
    name: str,
    sums: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray,
    transform: Callable = float,
    clusters: Clusters = (),
) -> Score:
    """sum(sums) / sum(counts), for example the loss per token over rows of unequal length; the bootstrap draws rows, or
    their clusters."""
    rows = np.stack([np.asarray(sums, float), np.asarray(counts, float)], 1)  # [n, 2]
    if not len(rows) or rows[:, 1].sum() == 0:
        return not_measured(name, higher_is_better=False)
    units = sums_by_cluster(rows, clusters) if clusters else rows
    totals = np.concatenate([units[pick].sum(1) for pick in bootstrap_draws(len(units), BOOTSTRAP_DRAWS)])  # [draws, 2]
    values = [transform(x) for x in (totals[:, 0] / np.maximum(totals[:, 1], 1e-12)).tolist()]
    value = transform(float(rows[:, 0].sum() / rows[:, 1].sum()))
    return _with_percentiles(name, value, values, len(rows), len(units) if clusters else 0, higher_is_better=False)


def bootstrapped_by_weights(
    name: str,
    n: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    higher_is_better: bool = True,
    clusters: Clusters = (),
) -> Score:
    """A statistic of rows that may count several times, or not at all: many bootstrap draws at once.

    Args:
        statistic: how often each row counts [draws, n] -> its value in each draw [draws]; NaN: undefined, as a draw without
            a class has no AUROC. Such draws are left out.
    """
    if not n:
        return not_measured(name, higher_is_better)
    members = members_of(clusters) if clusters else []
    units = len(members) or n
    unit_of = np.arange(n)
    for number, rows in enumerate(members):
        unit_of[rows] = number
    values = []
    for picks in bootstrap_draws(units, BOOTSTRAP_DRAWS, max(units, n)):
        picks = picks + units * np.arange(len(picks))[:, None]
        times = np.bincount(picks.ravel(), minlength=units * len(picks)).reshape(-1, units)
        values.append(statistic(times[:, unit_of].astype(float)))
    value = float(statistic(np.ones((1, n)))[0])
    if math.isnan(value):
        return not_measured(name, higher_is_better)
    return _with_percentiles(name, value, np.concatenate(values).tolist(), n, len(members), higher_is_better)


def jackknifed(
    name: str,
    items: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    higher_is_better: bool = True,
    clusters: Clusters = (),
) -> Score:
    """A statistic that falls where rows count twice (distinct n-grams), for which a bootstrap is no measure of chance.

    The interval is the value +- t s, with the standard error s of the values without each unit in turn (Tukey 1958; Efron &
    Tibshirani 1993, "An Introduction to the Bootstrap", eq. 11.5), within 0 and 1.
    """
    if not items:
        return not_measured(name, higher_is_better)
    members = members_of(clusters) if clusters else [[i] for i in range(len(items))]
    value, units = statistic(items), len(members)
    if units == 1:
        return Score(name, value, len(items), value, value, higher_is_better, "jackknife", clusters=len(clusters) and 1)
    without = [statistic([items[i] for j, rows in enumerate(members) if j != k for i in rows]) for k in range(units)]
    half = t_quantile(units - 1) * math.sqrt((units - 1) * float(np.var(without)))
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Score(name, value, len(items), low, high, higher_is_better, "jackknife", clusters=units if clusters else 0)


def _with_percentiles(
    name: str, value: float, values: Sequence[float], n: int, clusters: int, higher_is_better: bool
) -> Score:
    """The score of a bootstrap over n rows, or over their clusters; draws in which it is undefined (NaN) are left out."""
    keep_draws(values)
    low, high = percentiles([x for x in values if x == x] or [value], clusters or n)
    interval = "bootstrap_clusters" if clusters else "bootstrap"
    return Score(name, value, n, low, high, higher_is_better, interval, clusters=clusters)


def as_fraction(score: Score) -> Score:
    """The same value as a fraction between 0 and 1, better when higher.

    If every row is 0, or every row is 1, a bootstrap has no spread and its interval is empty at any n. Wilson's is not.

    >>> str(as_fraction(bootstrapped("squad_f1", [1.0] * 15, lambda rows: sum(rows) / len(rows))))
    '100.0 % [79.6, 100.0], n = 15'
    """
    if score.low == score.high and score.value in (0.0, 1.0):
        units = score.clusters or score.n
        wilson = proportion(score.name, round(score.value * units), units)
        return replace(score, low=wilson.low, high=wilson.high, interval="wilson", higher_is_better=True)
    return replace(score, higher_is_better=True)


def weighted_sum(name: str, parts: Sequence[tuple[float, Score]]) -> Score:
    """A weighted sum of scores measured on different rows: the halves of their intervals are added in quadrature."""
    measured = [(weight, x) for weight, x in parts if x.n]
    if not measured:
        return not_measured(name, higher_is_better=False)
    value = sum(weight * x.value for weight, x in measured)
    low = math.hypot(*(weight * (x.value - x.low) for weight, x in measured))
    high = math.hypot(*(weight * (x.high - x.value) for weight, x in measured))
    n, higher_is_better = sum(x.n for _, x in measured), measured[0][1].higher_is_better
    score = Score(name, value, n, value - low, value + high, higher_is_better, "quadrature")
    notes = tuple(dict.fromkeys(note for _, x in measured for note in x.notes))
    return replace(score, left_out=sum(x.left_out for _, x in measured), notes=notes)


# -- shown to people --------------------------------------------------------------------------------------------------

VERDICTS = {
    "": Message(""),
    "better": Message("better"),
    "worse": Message("worse"),
    "changed": Message("changed"),
    "overlap": Message("intervals overlap"),
    "few_rows": Message("too few rows (n < {n})", n=MIN_ROWS),
    "few_clusters": Message("too few groups of rows (fewer than {n})", n=MIN_ROWS),
}


def score_rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    """A table row per metric: n, value and interval before and after, the change, a verdict (a key of VERDICTS), its text.

    Args:
        scores: scores.json.
    """
    rows = []
    before, after = scores.get("before", {}), scores.get("after", {})
    for name in after or before:
        a, b = before.get(name), after.get(name)
        row = {"name": name, "n": _format_n(a, b), "before": format_interval(name, a), "after": format_interval(name, b)}
        row |= {"change": "", "verdict": ""}
        if a and b and a["n"] and b["n"]:
            change = b["value"] - a["value"]
            row["change"] = str(format_change(name, change))
            row["verdict"] = score_verdict(a, b)
        rows.append({**row, "verdict_text": str(VERDICTS[row["verdict"]])})
    return rows


def score_verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A key of VERDICTS: whether two scores of scores.json differ by more than their intervals."""
    if min(before["n"], after["n"]) < MIN_ROWS:
        return "few_rows"
    if 0 < min(before.get("clusters", MIN_ROWS), after.get("clusters", MIN_ROWS)) < MIN_ROWS:
        return "few_clusters"
    if after["low"] <= before["high"] and after["high"] >= before["low"]:
        return "overlap"
    if after["higher_is_better"] is None:
        return "changed"
    return "better" if (after["value"] > before["value"]) == after["higher_is_better"] else "worse"


def format_change(name: str, change: float) -> Message:
    """'+3.2 points' for a percentage, '-0.123' for any other metric."""
    if is_percentage(name):
        return Message("{change:+.1f} points", change=100 * change)
    return joined("", [f"{change:+.{_digits(change)}f}"])


def _digits(value: float) -> int:
    """Decimals: 2.310, 23.10, 231.0"""
    return 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1


def score_notes(scores: dict[str, Any]) -> list[Message]:
    """What a reader of the table must know, each once; a note on one column only names it.

    Args:
        scores: scores.json.
    """
    columns = {
        when: dict.fromkeys(Message.from_json(note) for x in scores[when].values() for note in x.get("notes", ()))
        for when in ("before", "after")
        if when in scores
    }
    notes = dict.fromkeys(note for column in columns.values() for note in column)
    return [note if all(note in x for x in columns.values()) else _of_column(note, columns) for note in notes]


def _of_column(note: Message, columns: dict[str, dict[Message, None]]) -> Message:
    """A note with the one column that it belongs to."""
    when = next(name for name, column in columns.items() if note in column)
    return Message("{when}: {note}", when=Message(when), note=note)


def _format_n(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """'200', '200 of 1,000', or '180 / 200' where it differs."""
    return " / ".join(dict.fromkeys(str(row_count(x)) for x in (before, after) if x))


def format_interval(name: str, score: dict[str, Any] | None) -> str:
    """'78.5 % [72.3, 83.6]'."""
    if not score or not score["n"]:
        return str(Message("not measured"))
    scale, digits, unit = (100, 1, " %") if is_percentage(name) else (1, _digits(score["value"]), "")
    value, low, high = (f"{scale * score[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]" if score["n"] > 1 else f"{value}{unit}"


def format_score(name: str, score: dict[str, Any] | None) -> str:
    """'78.5 % [72.3, 83.6], n = 200'."""
    if not score or not score["n"]:
        return str(Message("not measured"))
    value = format_interval(name, score)
    if score["n"] == 1 and not score.get("left_out"):
        return str(Message("{value}, n = 1: no interval", value=value))
    return f"{value}, n = {row_count(score)}"


def format_p(p: float) -> str:
    """
    >>> format_p(0.0312), format_p(0.0001)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
