"""Which rows something was found in: how many, and which are the first of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 4  # rows that are shown
LISTED = 1000  # rows whose lines are told


@dataclass
class Occurrences:
    """Rows with one thing in common."""

    rows: int = 0
    listed: list[int] = field(default_factory=list)
    """Indices of the first of them."""

    def add(self, row: int) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.listed) < LISTED:
            self.listed.append(row)

    @property
    def examples(self) -> list[int]:
        """The rows that are shown."""
        return self.listed[:EXAMPLES]

    @classmethod
    def of(cls, rows: Iterable[int]) -> "Occurrences":
        """
        >>> Occurrences.of(range(9)).examples
        [0, 1, 2, 3]
        """
        indices = [int(x) for x in rows]
        return cls(len(indices), indices[:LISTED])
