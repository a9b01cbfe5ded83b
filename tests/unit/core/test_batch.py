"""Batches carry labels and named targets wherever their rows go."""

import numpy as np
import pytest
import torch

from weitiao.core.batch import (
    IGNORE,
    AnnotatedRow,
    Batch,
    pack,
    select_segments,
    select_task,
    take_tokens,
    with_virtual_tokens,
)


def row(n: int, start: int = 0, task: str = "") -> AnnotatedRow:
    """A row of n tokens whose targets follow from its ids."""
    ids = list(range(start, start + n))
    made = AnnotatedRow(
        input_ids=ids,
        labels=[IGNORE] * (n - 1) + [start],
        targets={"number": np.array([start / 3, -start], np.float32), "class_id": start},
        token_targets={"word_id": [x // 2 for x in ids]},
    )
    return AnnotatedRow(**{**made, "task": task}) if task else made


def check(batch: Batch) -> None:
    """Every segment's targets are those of its ids."""
    for i, (a, b) in enumerate(zip(batch.bounds, batch.bounds[1:])):
        ids = batch.input_ids[a:b]
        start = int(ids[0])
        assert batch.labels[b - 1] == start and batch.targets["class_id"][i] == start
        assert torch.equal(batch.targets["number"][i], torch.tensor([start / 3, -start]))
        assert torch.equal(batch.token_targets["word_id"][a:b], ids // 2)


def test_pack_and_select_keep_targets() -> None:
    batch = pack([row(2, 10), row(5, 20), row(1, 30), row(3, 40)])
    check(batch)
    check(select_segments(batch, [3, 0, 2]))
    check(pack(batch.rows))
    assert batch.targets["number"].dtype == torch.float32 and batch.targets["class_id"].dtype == torch.int64


def test_rows_of_one_token_each() -> None:
    """As many tokens as rows: a row's targets are not taken for its tokens'."""
    batch = pack([row(1, 10), row(1, 20), row(1, 30)])
    check(select_segments(batch, [2, 0]))
    longer, own = with_virtual_tokens(batch, [-1, -2])
    assert (
        longer.targets["class_id"].tolist() == [10, 20, 30] and len(longer.token_targets["word_id"]) == longer.tokens == 9
    )
    assert torch.equal(longer.token_targets["word_id"][own], batch.token_targets["word_id"])


def test_virtual_tokens_carry_no_loss() -> None:
    batch = pack([row(2, 10), row(5, 20)])
    longer, own = with_virtual_tokens(batch, [-1, -2, -3])
    assert longer.bounds == (0, 8, 13) and longer.input_ids.tolist()[:4] == [-1, -2, -3, 20]
    assert longer.position_ids.tolist() == [*range(8), *range(5)]
    assert torch.equal(longer.labels[own], batch.labels) and int((longer.labels != IGNORE).sum()) == 2
    assert torch.equal(longer.token_targets["word_id"][own], batch.token_targets["word_id"])


def test_tasks_have_their_own_targets() -> None:
    rows = [row(2, 10, "a"), row(4, 20, "b"), row(3, 30, "a")]
    del rows[1]["targets"]["class_id"]
    batch = pack(rows)
    assert set(batch.targets) == {"a/number", "a/class_id", "b/number"}
    assert batch.targets["a/class_id"].tolist() == [0, 30, 10]
    alone, segments = select_task(batch, "a")
    assert segments == [1, 2] and alone.tasks == () and set(alone.targets) == {"number", "class_id"}
    check(alone)
    assert set(select_task(batch, "b")[0].targets) == {"number"}
    again = pack(batch.rows)
    assert all(torch.equal(again.targets[name], x) for name, x in batch.targets.items())


@pytest.mark.parametrize("as_array", [False, True])
def test_take_tokens(as_array: bool) -> None:
    whole = row(6, 10)
    if as_array:
        whole = AnnotatedRow(
            **{**whole, "input_ids": np.arange(10, 16), "token_targets": {"word_id": np.arange(10, 16) // 2}}
        )
    short = take_tokens(whole, [0, 1, 5])
    assert (short["input_ids"], short["labels"]) == ([10, 11, 15], [IGNORE, IGNORE, 10])
    assert list(short["token_targets"]["word_id"]) == [5, 5, 7] and short["targets"] is whole["targets"]
