"""loader[i] is a pure function of rows, seed and i."""

from typing import Any

import numpy as np
import pytest

from support.loading import Made, same, taken
from weitiao.data.loader import InOrder, Loader


def rows(count: int = 23, sources: int = 1) -> Made:
    lengths = np.random.default_rng(3).integers(1, 40, count)
    return Made(lengths, np.arange(count) % sources)


KINDS: list[dict[str, Any]] = [
    {"batch_size": 4},
    {"batch_tokens": 64},
    {"batch_size": 5, "micro_batch_tokens": 30},
    {"batch_tokens": 100, "micro_batch_tokens": 40, "weights": (0.5, 2.25)},
]


@pytest.mark.parametrize("kind", KINDS)
def test_step_is_pure_function_of_index(kind: dict) -> None:
    made = rows(sources=2)
    loader = Loader(made, seed=5, **kind)
    first = [loader[i] for i in range(40)]
    assert loader.locate(39)[0] >= 3, "the test does not reach into later epochs"
    for i in (39, 0, 17, 5, 38, 17, 1):
        assert same(loader[i], first[i])
        assert same(Loader(made, seed=5, **kind)[i], first[i])


def test_seed_changes_order() -> None:
    orders = {tuple(taken(Loader(rows(), seed, batch_size=23)[0])) for seed in range(3)}
    first = {tuple(Loader(rows(), seed, batch_size=23).epoch(0)[0]) for seed in range(3)}
    assert len(first) == 3 and len(orders) == 1  # within a micro-batch rows stand by length


@pytest.mark.parametrize("kind", KINDS[:3])
def test_each_row_once_per_epoch_reshuffled(kind: dict) -> None:
    loader = Loader(rows(), 0, **kind)
    epochs = [[j for i in range(loader.start(e), loader.start(e + 1)) for j in taken(loader[i])] for e in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(np.concatenate(loader.epoch(e))) for e in range(4)}) == 4


def test_rows_complete_with_labels() -> None:
    made = rows()
    for batch in Loader(made, 0, batch_size=6)[0]:
        for (a, b), j in zip(zip(batch.bounds, batch.bounds[1:]), batch.row_ids):
            assert batch.input_ids[a:b].tolist() == made[j]["input_ids"]
            assert batch.position_ids[a:b].tolist() == list(range(b - a))


def test_step_has_batch_size_rows() -> None:
    loader = Loader(rows(), 0, batch_size=4)
    assert [len(x) for x in loader.epoch(0)] == [4, 4, 4, 4, 4, 3]
    assert loader.steps(1.0) == 6 and loader.steps(2.5) == 15 and loader.steps(0.01) == 1


@pytest.mark.parametrize("budget", [16, 64, 200])
def test_step_has_at_most_batch_tokens(budget: int) -> None:
    made = rows(60)
    steps = Loader(made, 1, batch_tokens=budget).epoch(0)
    order = np.concatenate(steps)
    at = 0
    for step in steps:
        tokens = int(made.lengths[step].sum())
        assert tokens <= budget or len(step) == 1
        at += len(step)
        if at < len(order):
            assert tokens + made.lengths[order[at]] > budget, "the next row would have fitted"


def test_micro_batches_partition_step() -> None:
    made = rows(60)
    whole, cut = Loader(made, 1, batch_size=20), Loader(made, 1, batch_size=20, micro_batch_tokens=50)
    for i in range(3):
        assert len(whole[i]) == 1 and len(cut[i]) > 3
        assert sorted(taken(cut[i])) == sorted(taken(whole[i]))
        assert all(batch.tokens <= 50 or len(batch.row_ids) == 1 for batch in cut[i])


def test_source_weights_repeat_and_subsample() -> None:
    made = rows(400, sources=2)
    loader = Loader(made, 0, batch_size=16, weights=(3.0, 0.5))
    for epoch in (0, 1):
        order = np.concatenate(loader.epoch(epoch))
        times = np.bincount(order, minlength=400)
        assert set(times[made.source == 0]) == {3}
        assert set(times[made.source == 1]) == {0, 1}
        assert 70 <= times[made.source == 1].sum() <= 130
    encoder_decoder = [
        set(np.concatenate(loader.epoch(e))[made.source[np.concatenate(loader.epoch(e))] == 1]) for e in (0, 1)
    ]
    assert encoder_decoder[0] != encoder_decoder[1], "a different half each epoch"


def test_fractional_source_weight() -> None:
    made = rows(400)
    times = np.bincount(np.concatenate(Loader(made, 0, batch_size=50, weights=(1.25,)).epoch(0)), minlength=400)
    assert set(times) == {1, 2} and 460 <= times.sum() <= 540


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_each_step(kind: dict, world: int) -> None:
    made = rows(sources=2)
    alone = Loader(made, 7, **kind)
    shares = [Loader(made, 7, rank=rank, world=world, **kind) for rank in range(world)]
    for i in range(12):
        assert sorted(j for share in shares for j in taken(share[i])) == sorted(taken(alone[i]))


def test_rank_without_rows_has_no_batch() -> None:
    assert Loader(rows(1), 0, batch_size=4, rank=1, world=2)[0] == []


def test_evaluation_order_and_budget() -> None:
    made = rows(60)
    batches = list(InOrder(made, 64))
    assert sorted(taken(batches)) == list(range(60))
    assert all(b.tokens <= 64 for b in batches)
    assert all(max(a.row_ids) < min(b.row_ids) for a, b in zip(batches, batches[1:]))
