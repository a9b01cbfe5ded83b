"""Which group each encoded row belongs to: its source, its task or its class; and how many tokens of each a run uses."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import SourcedExample, TextLabel
from weitiao.core.mixing import Groups
from weitiao.core.recipe import Recipe, effective_mixing
from weitiao.data.encode import Rows
from weitiao.data.loader import Loader

MAX_LABELS = 64  # different answers, above which they are no classes
WINDOW = 100  # steps over which shares are told
MAX_ROWS = 20_000_000  # that are looked at, for a table


def groups_of(recipe: Recipe, examples: Iterable[SourcedExample], rows: Rows) -> Groups:
    """The groups that a recipe mixes; where it does not, its sources.

    Args:
        examples: the training rows before they were encoded.

    Raises:
        DataError: the rows have no classes.
    """
    mixing = effective_mixing(recipe)
    by = "source" if mixing is None else mixing.by
    replayed = [recipe.replay.path] if recipe.replay is not None else []
    if by == "source":
        return Groups(_unique([*(x.path for x in recipe.data), *replayed]), rows.source.astype(np.int64))
    label_of = {(x.source, str(x.where)): _label(x, by) for x in examples if x.source < len(recipe.data)}
    labels = [label_of.get((int(rows.source[i]), str(rows.where(i)))) for i in range(len(rows))]
    counts = Counter(x for x in labels if x is not None)
    if by == "label" and len(counts) > MAX_LABELS:
        raise DataError(
            "mixing.by: label: the rows have {n:,} different answers, which are no classes (at most {limit}).",
            n=len(counts),
            limit=MAX_LABELS,
        )
    names = sorted(counts)
    number = {name: i for i, name in enumerate(names)}
    group = np.array([len(names) if x is None else number[x] for x in labels])
    return Groups(_unique([*names, *replayed]), group)


def _label(x: SourcedExample, by: str) -> str:
    if by == "task":
        return x.task
    example = x.without_task.example
    if isinstance(example, TextLabel):
        return ", ".join(sorted(example.labels)) or "(none)"
    return example.answer


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names; a later one of the same name has its number behind it."""
    return tuple(f"{x} ({names[:i].count(x) + 1})" if x in names[:i] else x for i, x in enumerate(names))


@dataclass(frozen=True)
class Use:
    """What a run uses of each group."""

    rows: np.ndarray
    """[groups] that there are."""
    tokens: np.ndarray
    """[groups] that there are."""
    used: np.ndarray
    """[groups] tokens of `steps` steps."""
    steps: int
    """That were looked at: all, up to 20 million rows."""
    deviation: float | None
    """The largest difference of a group's share over any 100 steps (all, if there are fewer) from its share of all."""

    @property
    def shares(self) -> np.ndarray:
        """[groups] of all tokens."""
        return self.used / max(self.used.sum(), 1)


def count_use(loader: Loader, groups: Groups, steps: int, shares: Sequence[float] | None = None) -> Use:
    """What the steps of a run use of each group.

    Args:
        shares: [groups] what is planned; None: the deviation is from the mean of all steps.
    """
    num, lengths = len(groups.names), loader.rows.lengths
    by_step: list[np.ndarray] = []
    epoch = seen = 0
    while len(by_step) < steps and seen < MAX_ROWS:
        for ids in loader.epoch(epoch)[: steps - len(by_step)]:
            by_step.append(np.bincount(groups.group[ids], lengths[ids], num))
            seen += len(ids)
        epoch += 1
    table = np.array(by_step)  # [steps, groups]
    use = Use(
        np.bincount(groups.group, minlength=num), np.bincount(groups.group, lengths, num), table.sum(0), len(table), None
    )
    sums = np.concatenate([np.zeros((1, num)), table.cumsum(0)])
    window = min(WINDOW, len(table))
    of_windows = sums[window:] - sums[:-window]
    of_windows /= of_windows.sum(1, keepdims=True)
    deviation = float(np.abs(of_windows - (use.shares if shares is None else np.asarray(shares))).max())
    return Use(use.rows, use.tokens, use.used, use.steps, deviation)
