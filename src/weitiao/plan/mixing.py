"""Shares of sources, tasks or classes in all tokens: from what the recipe asks and what there is to what is actual.

sizes      min(weight x tokens, cap an epoch)
requested  `share`; the rest in proportion to size^(1/T)
actual     requested, with no more of a group than its cap; what is over goes to the groups without `share`, then to all
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.errors import RecipeError
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.mixing import Cap, Groups, MixedGroup, Mixing
from weitiao.core.recipe import Recipe, effective_mixing
from weitiao.core.registry import nearest

MAX_NAMES = 8  # of groups that a sentence lists
ROUNDS = 100  # in which shares and tokens of a run agree
TOLERANCE = 1e-6  # of shares that are written with a few digits


@dataclass(frozen=True)
class Shares:
    """The shares that a run is mixed by."""

    names: tuple[str, ...]
    requested: tuple[float, ...]
    """[groups] before caps; they sum to 1."""
    actual: tuple[float, ...]
    """[groups]"""
    epoch_tokens: float
    idle_caps: tuple[str, ...] = ()
    """Groups whose cap is above what is used."""


def check_mixing(recipe: Recipe) -> None:
    """Whether what the recipe says of mixing goes together; before anything is read.

    Raises:
        RecipeError: it does not.
    """
    mixing = effective_mixing(recipe)
    if mixing is None:
        return
    by_source = mixing.by == "source"
    if by_source and mixing.groups:
        raise RecipeError("mixing.groups: of sources, write weight, share and cap at each source, in data.")
    own = [x.path for x in recipe.data if x.share is not None or x.cap is not None or x.weight != 1]
    if not by_source and own:
        raise RecipeError(
            "data: {path} has a weight, share or cap, which mixing.by: {by} would not keep. Write them in mixing.groups.",
            path=own[0],
            by=mixing.by,
        )
    tasks = len(recipe.objective.parts())
    if mixing.by == "task" and tasks < 2:
        raise RecipeError("mixing.by: task needs objective: multi_task with several tasks.")
    if mixing.by == "label" and tasks > 1:
        raise RecipeError("mixing.by: label is for an objective of one task; of several, use by: task or by: source.")
    if recipe.objective.epoch_weights({name: 1 + i for i, name in enumerate(recipe.objective.parts())}):
        raise RecipeError(
            "objective.temperature and mixing both say how tasks are sampled; write mixing.temperature alone."
        )
    settings = list(_settings(recipe, mixing, ()).values())
    total = sum(x.share or 0 for x in settings)
    if total > 1 + TOLERANCE:
        raise RecipeError("mixing: the shares add up to {total:.4g}, and all tokens are 1.", total=total)
    complete = by_source and all(x.share is not None for x in settings)
    _check_rest(total, complete, sum(x.share is None for x in settings) if by_source else None)


@dataclass(frozen=True)
class SizedGroups:
    """What is asked of each group, and how much there is of it."""

    names: tuple[str, ...]
    settings: tuple[MixedGroup, ...]
    tokens: np.ndarray
    """[groups]"""
    mean_length: np.ndarray
    """[groups] tokens of a row."""
    caps: np.ndarray
    """[groups] tokens an epoch; inf: no cap."""
    sizes: np.ndarray
    """[groups] what shares follow from: tokens, weighted and capped."""
    requested: np.ndarray
    """[groups] shares."""
    epoch_tokens: float


def size_groups(recipe: Recipe, groups: Groups, lengths: np.ndarray) -> SizedGroups:
    """What the recipe asks of the groups.

    Args:
        groups: those of the recipe's sources, tasks or classes.
        lengths: [rows] tokens.

    Raises:
        RecipeError: a group is not there, has no rows, or would get nothing.
    """
    mixing = effective_mixing(recipe)
    assert mixing is not None, "the recipe mixes by shares"
    by_name = _settings(recipe, mixing, groups.names)
    settings = tuple(by_name.get(name, MixedGroup()) for name in groups.names)
    rows = np.bincount(groups.group, minlength=len(settings))
    tokens = np.bincount(groups.group, lengths, len(settings))
    _check_names(by_name, groups, rows)
    mean = tokens / rows
    caps = np.array([_tokens_an_epoch(x.cap, m) for x, m in zip(settings, mean)])
    sizes = np.minimum([x.weight * n for x, n in zip(settings, tokens)], caps)
    requested = _requested([x.share for x in settings], sizes, mixing.temperature)
    return SizedGroups(
        groups.names, settings, tokens, mean, caps, sizes, requested, _epoch_tokens(mixing, sizes, requested)
    )


def choose_shares(recipe: Recipe, groups: SizedGroups, batch: dict[str, int]) -> tuple[Shares, Decision]:
    """The share of each group, with no more of any than its cap.

    Args:
        batch: {batch_size: rows} or {batch_tokens: tokens} a step.

    Raises:
        RecipeError: the caps leave too few tokens.
    """
    mixing = effective_mixing(recipe)
    assert mixing is not None, "the recipe mixes by shares"
    actual, limits = _within_caps(recipe, groups, batch)
    is_idle = [
        x.cap is not None and share < limit * (1 - 1e-3) and size >= x.weight * n
        for x, share, limit, size, n in zip(groups.settings, actual, limits, groups.sizes, groups.tokens)
    ]
    idle = tuple(name for name, x in zip(groups.names, is_idle) if x)
    shares = Shares(groups.names, tuple(groups.requested.tolist()), tuple(actual.tolist()), groups.epoch_tokens, idle)
    return shares, _decision(mixing, shares)


def _within_caps(recipe: Recipe, groups: SizedGroups, batch: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """([groups] shares, [groups] the most that each may have). How many tokens a run of so many rows takes follows from the
    shares, and what a cap in epochs allows from it: repeated until they agree.

    Raises:
        RecipeError: the caps leave too few tokens.
    """
    passes = np.array([x.cap.epochs if x.cap and x.cap.epochs else math.inf for x in groups.settings])
    is_fixed, actual = np.array([x.share is not None for x in groups.settings]), groups.requested
    limits = np.full(len(actual), math.inf)
    for _ in range(ROUNDS):
        before, total = actual, _run_tokens(recipe, groups, batch, actual)
        limits = np.minimum(groups.caps / groups.epoch_tokens, passes * groups.tokens / total)
        if limits.sum() < 1 - TOLERANCE:
            raise RecipeError(
                "mixing: with these caps {possible:,} tokens can be used, and the run takes {total:,}. Raise a cap, or "
                "train less (train.epochs, train.steps).",
                possible=int(limits.sum() * total),
                total=round(total),
            )
        actual = _limited(groups.requested, limits, is_fixed)
        if np.allclose(before, actual, rtol=1e-4, atol=0):
            break
    return actual, limits


def _run_tokens(recipe: Recipe, groups: SizedGroups, batch: dict[str, int], shares: np.ndarray) -> float:
    """Tokens of the whole run; where it counts steps, at most."""
    if recipe.train.steps is None:
        return recipe.train.epochs * groups.epoch_tokens
    if "batch_tokens" in batch:
        return recipe.train.steps * float(batch["batch_tokens"])
    tokens_a_row = 1 / float((shares / groups.mean_length).sum())
    return 1.02 * recipe.train.steps * batch["batch_size"] * tokens_a_row  # a little more: rows come whole


def _settings(recipe: Recipe, mixing: Mixing, names: Sequence[str]) -> dict[str, MixedGroup]:
    """What is asked of each group, by its name.

    Args:
        names: of the groups; (): numbers will do.
    """
    if mixing.by != "source":
        settings = dict(mixing.groups)
    else:
        keys = names or [str(i) for i in range(len(recipe.data))]
        settings = {
            key: MixedGroup(weight=x.weight, share=x.share, cap=x.cap) for key, x in zip(keys, recipe.data, strict=False)
        }
    if recipe.replay is not None:
        settings[names[-1] if names else "replay"] = MixedGroup(share=recipe.replay.fraction)
    return settings


def _check_names(settings: dict[str, MixedGroup], groups: Groups, rows: np.ndarray) -> None:
    if unknown := [name for name in settings if name not in groups.names]:
        raise RecipeError(
            "mixing.groups: there is no {name!r} in the data.{hint} There are: {names}",
            name=unknown[0],
            hint=nearest(unknown[0], list(groups.names)),
            names=", ".join(groups.names[:MAX_NAMES]) + (" ..." if len(groups.names) > MAX_NAMES else ""),
        )
    if not rows.all():
        raise RecipeError(
            "mixing: {name} has no row to train on, so it cannot have a share. See bad_rows.jsonl, or leave it out.",
            name=groups.names[int(rows.argmin())],
        )
    actual = [settings[x].share for x in groups.names if x in settings]
    total, rest = sum(x or 0 for x in actual), len(groups.names) - sum(x is not None for x in actual)
    _check_rest(total, rest == 0, rest)


def _check_rest(total: float, complete: bool, rest: int | None) -> None:
    """Whether the groups without a share have something left.

    Args:
        rest: their number; None: not known yet.
    """
    if complete and abs(total - 1) > TOLERANCE:
        raise RecipeError(
            "mixing: each has a share, and together they are {total:.4g} of all tokens, not 1. Leave one out: it gets the "
            "rest.",
            total=total,
        )
    if rest and total > 1 - TOLERANCE:
        raise RecipeError("mixing: the shares add up to 1, and {n} without a share would get nothing.", n=rest)


def _tokens_an_epoch(cap: Cap | None, mean_length: float) -> float:
    if cap is None or cap.epochs is not None:
        return math.inf
    return float(cap.tokens) if cap.tokens is not None else (cap.rows or 0) * mean_length


def _requested(shares: Sequence[float | None], sizes: np.ndarray, temperature: float) -> np.ndarray:
    """[groups]: those without a share divide the rest in proportion to size^(1/T)."""
    by_size = (sizes / sizes.max()) ** (1 / temperature)
    is_open = np.array([x is None for x in shares])
    requested = np.array([x or 0.0 for x in shares])
    if is_open.any():
        requested[is_open] = (1 - requested.sum()) * by_size[is_open] / by_size[is_open].sum()
    return requested / requested.sum()


def _epoch_tokens(mixing: Mixing, sizes: np.ndarray, requested: np.ndarray) -> float:
    if mixing.stopping_strategy == "total":
        return float(sizes.sum())
    ends = sizes / requested
    return float(ends.min() if mixing.stopping_strategy == "first_exhausted" else ends.max())


def _limited(requested: np.ndarray, limits: np.ndarray, is_fixed: np.ndarray) -> np.ndarray:
    """[groups]: the shares nearest to those requested with none above its limit.

    Args:
        is_fixed: [groups] those with a `share`, which give way last.
    """
    actual, full = requested.copy(), np.zeros(len(requested), bool)
    while (over := ~full & (actual > limits * (1 + TOLERANCE))).any():
        full |= over
        actual[full] = limits[full]
        takes = ~full & ~is_fixed if (~full & ~is_fixed).any() else ~full
        if takes.any():
            actual[takes] = requested[takes] / requested[takes].sum() * max(1 - actual[~takes].sum(), 0.0)
    return actual / actual.sum()


def _decision(mixing: Mixing, shares: Shares) -> Decision:
    rounded = {name: round(x, 4) for name, x in zip(shares.names, shares.actual)}
    reason = Message(
        "tokens by {by}, temperature {temperature:g}; an epoch has {tokens:,} tokens ({strategy})",
        by=mixing.by,
        temperature=mixing.temperature,
        tokens=round(shares.epoch_tokens),
        strategy=mixing.stopping_strategy,
    )
    return Decision("mixing", rounded, reason)
