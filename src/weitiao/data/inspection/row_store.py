"""The texts of all rows in a temporary file, and where each row comes from: memory holds only positions.

The file has no name, so that it is gone with the process, however that ends.
"""

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weitiao.core.example import SourceLocation
from weitiao.data.inspection.row_texts import RowTexts

READ_AT_ONCE = 4096  # rows
PARTS = 2  # texts of a row: what is given, and the answer


@dataclass(frozen=True)
class RowBatch:
    """Some rows, one behind the other."""

    first: int
    """The index of the first, counted over all files."""
    rows: Sequence[RowTexts]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def wholes(self) -> list[str]:
        """Of each row, what is given and the answer."""
        return [f"{x.prompt}\n{x.answer}" if x.answer else x.prompt for x in self.rows]


class RowStore:
    """Given and learnt text of each row, by its index."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="weitiao-inspect-")  # noqa: SIM115 (as long as the store)
        self._ends = array("q")
        self._size = 0
        self._lines, self._files = array("q"), array("H")
        self.file_names: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, batch: RowBatch, locations: Sequence[SourceLocation]) -> None:
        """Keep a batch.

        Raises:
            UnicodeEncodeError: a text has half a surrogate pair.
        """
        pieces: list[bytes] = []
        for x, where in zip(batch.rows, locations):
            for text in (x.prompt, x.answer):
                raw = text.encode()
                pieces.append(raw)
                self._size += len(raw)
                self._ends.append(self._size)
            if not self.file_names or self.file_names[-1] != where.file:
                self.file_names.append(where.file)
            self._files.append(len(self.file_names) - 1)
            self._lines.append(where.line)
        self._file.write(b"".join(pieces))

    def where(self, row: int) -> SourceLocation:
        """The file and the line of a row."""
        return SourceLocation(self.file_names[self._files[row]], self._lines[row])

    def texts(self, row: int) -> tuple[str, str]:
        """What is given, and the answer."""
        start = self._ends[PARTS * row - 1] if row else 0
        middle, end = self._ends[PARTS * row], self._ends[PARTS * row + 1]
        self._file.seek(start)
        raw = self._file.read(end - start)
        return raw[: middle - start].decode(), raw[middle - start :].decode()

    def whole(self, row: int) -> str:
        """What is given, and the answer, as one text."""
        prompt, answer = self.texts(row)
        return f"{prompt}\n{answer}" if answer else prompt

    def batches(self) -> Iterator[list[tuple[str, str]]]:
        """All rows in their order, some at a time."""
        ends = np.concatenate([[0], np.frombuffer(self._ends, np.int64)]) if self._ends else np.zeros(1, np.int64)
        position = 0
        for first in range(0, len(self), READ_AT_ONCE):
            bounds = ends[PARTS * first : PARTS * min(first + READ_AT_ONCE, len(self)) + 1]
            self._file.seek(position)
            raw = self._file.read(int(bounds[-1]) - position)
            cuts = (bounds - position).tolist()
            texts = [raw[a:b].decode() for a, b in zip(cuts, cuts[1:])]
            position = int(bounds[-1])
            yield list(zip(texts[::PARTS], texts[1::PARTS]))

    def file_of_rows(self) -> np.ndarray:
        """(rows,) uint16: the index of each row's file in `file_names`."""
        return np.frombuffer(self._files, np.uint16) if self._files else np.zeros(0, np.uint16)
