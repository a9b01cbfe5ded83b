"""Shares of tokens from step to step, for groups whose rows are of very different length."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from support.loading import Made, same, taken
from weitiao.core.mixing import Groups, Mixture
from weitiao.data.loader import Loader
from weitiao.data.mixing_groups import count_use

SIZES = ((3000, 5, 30), (500, 100, 512), (60, 200, 1024))  # rows, shortest, longest
SHARES = [(0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.9, 0.05, 0.05), (1 / 3, 1 / 3, 1 / 3)]
STEP = {"batch_tokens": 4096, "micro_batch_tokens": 1024}


def rows() -> Made:
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.integers(low, high, n) for n, low, high in SIZES])
    return Made(lengths, np.repeat(np.arange(3), [n for n, _, _ in SIZES]))


def mixed(shares: tuple[float, ...], seed: int = 1, epoch_tokens: float | None = None, **more: Any) -> Loader:
    made = rows()
    mixture = Mixture(made.source, shares, float(epoch_tokens or made.lengths.sum()))
    return Loader(made, seed, mixture=mixture, **{**STEP, **more})


def tokens_by_step(loader: Loader, epochs: int) -> np.ndarray:
    """[steps, groups]"""
    steps = [ids for e in range(epochs) for ids in loader.epoch(e)]
    return np.array([np.bincount(loader.rows.source[x], loader.rows.lengths[x], 3) for x in steps])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shares", SHARES)
def test_shares_hold_over_any_100_steps(shares: tuple[float, ...], seed: int) -> None:
    """Within half a point, over every window of 100 steps of six epochs, also those that two epochs share."""
    tokens = tokens_by_step(mixed(shares, seed), 6)
    sums = np.concatenate([np.zeros((1, 3)), tokens.cumsum(0)])
    windows = sums[100:] - sums[:-100]
    assert len(windows) > 150
    assert np.abs(windows / windows.sum(1, keepdims=True) - shares).max() < 0.005


def test_repeated_rows_alone_do_not_hold_shares() -> None:
    """What is compared: weights give the share of an epoch, and by chance that of a hundred steps."""
    made = rows()
    tokens = np.bincount(made.source, made.lengths)
    weights = tuple(tokens.sum() * np.array([0.5, 0.3, 0.2]) / tokens)
    by_step = tokens_by_step(Loader(made, 1, weights=weights, **STEP), 6)
    windows = np.diff(by_step.cumsum(0)[::100], axis=0)
    assert np.abs(windows / windows.sum(1, keepdims=True) - (0.5, 0.3, 0.2)).max() > 0.005


@pytest.mark.parametrize(
    "batch", [{"batch_tokens": 4096, "micro_batch_tokens": 900}, {"batch_size": 100, "batch_tokens": None}]
)
def test_step_is_pure_function_of_index(batch: dict[str, Any]) -> None:
    loader = mixed(SHARES[0], epoch_tokens=60_000, **batch)
    first = [loader[i] for i in range(60)]
    assert loader.locate(59)[0] >= 2, "the test does not reach into later epochs"
    for i in (59, 0, 31, 7, 58, 31):
        assert same(loader[i], first[i]) and same(mixed(SHARES[0], epoch_tokens=60_000, **batch)[i], first[i])
    assert not same(mixed(SHARES[0], seed=2, **batch)[0], first[0])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step(world: int) -> None:
    alone, parts = mixed(SHARES[0]), [mixed(SHARES[0], rank=rank, world=world) for rank in range(world)]
    for i in range(20):
        assert sorted(j for part in parts for j in taken(part[i])) == sorted(taken(alone[i]))


def test_rows_of_a_group_come_again_only_after_all() -> None:
    """Over an oversampled group's epochs, the numbers of uses differ by one at most; so do they at any moment."""
    loader = mixed((0.1, 0.1, 0.8))
    used = np.zeros(len(loader.rows), int)
    for epoch in range(3):
        for ids in loader.epoch(epoch):
            np.add.at(used, ids, 1)
            of_small = used[loader.rows.source == 2]
            assert of_small.max() - of_small.min() <= 1
    assert of_small.min() > 4


def test_next_epoch_uses_what_was_left_out() -> None:
    """A group of which an epoch takes a third: three epochs have each row once, in stretches that do not overlap."""
    made = rows()
    tokens = np.bincount(made.source, made.lengths)
    epoch_tokens = tokens[1] / 3 + tokens[2]
    loader = mixed((0.0, tokens[1] / 3 / epoch_tokens, tokens[2] / epoch_tokens), epoch_tokens=epoch_tokens)
    of_epoch = [{j for ids in loader.epoch(e) for j in ids.tolist() if made.source[j] == 1} for e in range(3)]
    assert all(150 < len(x) < 185 for x in of_epoch)
    assert all(not a & b for a, b in pairwise(of_epoch)) and len(set.union(*of_epoch)) == 500


def test_epochs_have_their_tokens() -> None:
    loader = mixed(SHARES[0], epoch_tokens=50_000)
    for epoch in range(5):
        assert abs(sum(loader.rows.lengths[ids].sum() for ids in loader.epoch(epoch)) - 50_000) < 2 * 1024


def test_epoch_shorter_than_a_row() -> None:
    """Most epochs are empty; steps are found nevertheless."""
    made = Made(np.full(4, 50), np.array([0, 0, 1, 1]))
    loader = Loader(made, 0, batch_size=2, mixture=Mixture(made.source, (0.5, 0.5), 10.0))
    assert [len(taken(loader[i])) for i in range(5)] == [2, 2, 2, 2, 2] and loader.locate(4)[0] > 4


def test_use_of_a_run() -> None:
    """Counted by hand; the deviation is that of the worst window."""
    loader = mixed(SHARES[0])
    groups = Groups(("a", "b", "c"), loader.rows.source)
    use = count_use(loader, groups, 250, SHARES[0])
    by_step = tokens_by_step(loader, 5)[:250]
    assert use.steps == 250 and use.used.tolist() == by_step.sum(0).tolist()
    worst = max(np.abs(x.sum(0) / x.sum() - SHARES[0]).max() for i in range(151) if len(x := by_step[i : i + 100]))
    assert use.deviation == pytest.approx(worst) and 0 < worst < 0.005
    assert use.rows.tolist() == [n for n, _, _ in SIZES]
