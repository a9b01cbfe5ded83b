"""Which rows something was found in: how many, and the first of them as examples."""

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 4  # rows that are shown


@dataclass
class Occurrences:
    """Rows with one thing in common."""

    rows: int = 0
    examples: list[int] = field(default_factory=list)
    """Indices of the first of them."""

    def add(self, row: int) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)

    @classmethod
    def of(cls, rows: Iterable[int]) -> "Occurrences":
        """
        >>> Occurrences.of(range(9)).examples
        [0, 1, 2, 3]
        """
        found = [int(x) for x in rows]
        return cls(len(found), found[:EXAMPLES])
