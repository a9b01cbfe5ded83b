"""A random sample of the rows of a stream: for questions that cannot be put to every row."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Sample:
    """At most `size` rows and `characters` of text, each row with the same chance; the same rows for the same seed."""

    def __init__(self, size: int, seed: int, characters: int = 20_000_000) -> None:
        self._random = np.random.default_rng(seed)
        self._size, self._characters = size, characters
        self._bound = 1.0  # rows whose random number is below it are in
        self._rows: list[tuple[float, int, int, Any]] = []
        self._used = 0

    def add(self, first: int, rows: Sequence[Any], lengths: Sequence[int]) -> None:
        """Offer rows.

        Args:
            first: the index of the first.
            lengths: characters of each.
        """
        numbers = self._random.random(len(rows))
        for i in np.flatnonzero(numbers < self._bound).tolist():
            self._rows.append((float(numbers[i]), first + i, lengths[i], rows[i]))
            self._used += lengths[i]
        while len(self._rows) > self._size or (self._used > self._characters and len(self._rows) > 1):
            self._rows.sort(key=lambda x: x[0])
            half = max(1, min(len(self._rows) - 1, int(self._size * 0.9)))
            if self._used > self._characters:
                half = max(1, len(self._rows) // 2)
            self._rows = self._rows[:half]
            self._bound = self._rows[-1][0]
            self._used = sum(x[2] for x in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[tuple[int, Any]]:
        """(index, row), in their order."""
        return [(x[1], x[3]) for x in sorted(self._rows, key=lambda x: x[1])]
