"""Rows of known lengths, for loaders, and what their batches hold."""

from dataclasses import dataclass, field

import numpy as np
import torch

from weitiao.core.batch import Batch, Row


@dataclass
class Made:
    """Rows of known lengths; row j is j, j, j ..."""

    lengths: np.ndarray
    source: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.source = self.source if len(self.source) else np.zeros(len(self.lengths), int)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Row:
        return {"input_ids": [int(i)] * int(self.lengths[i]), "labels": [int(i)] * int(self.lengths[i])}


def taken(batches: list[Batch]) -> list[int]:
    return [j for batch in batches for j in batch.row_ids]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.input_ids, y.input_ids) and x.bounds == y.bounds and x.row_ids == y.row_ids for x, y in zip(a, b)
    )
