"""Answers that begin alike: a model that is trained on them begins every answer so."""

from array import array
from typing import Any

import numpy as np

from weitiao.data.inspection.row_store import RowBatch

HAN_CHARACTERS, LATIN_CHARACTERS = 6, 20  # of an opening
SHOWN = 8
LEAST_ROWS, LEAST_SHARE = 5, 0.02


class Openings:
    """The hash of each answer's first characters."""

    def __init__(self) -> None:
        self._hashes, self._answers = array("q"), array("q")

    def add(self, batch: RowBatch) -> None:
        """Hash a batch."""
        for x in batch.rows:
            answer = x.answer
            has_words = answer[:HAN_CHARACTERS].isascii()
            opening = answer[: LATIN_CHARACTERS if has_words else HAN_CHARACTERS]
            self._hashes.append(hash(opening) if len(opening) < len(answer) else 0)
            self._answers.append(hash(answer))

    def result(self) -> dict[str, Any]:
        """{n, frequent: [{rows, example}]}: openings of many rows that are not one and the same answer.

        Where few different answers make up the data, they are classes, and nothing is reported.
        """
        hashes, answers = (
            np.frombuffer(x, np.int64) if x else np.zeros(0, np.int64) for x in (self._hashes, self._answers)
        )
        n = int((answers != hash("")).sum())
        values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        frequent = []
        for i in np.argsort(-counts, kind="stable")[: SHOWN + 1]:
            if values[i] == 0 or counts[i] < max(LEAST_ROWS, LEAST_SHARE * n):
                continue
            different = len(np.unique(answers[hashes == values[i]]))
            if different > counts[i] / 10:
                frequent.append({"rows": int(counts[i]), "example": int(first[i]), "answers": different})
        return {"n": n, "frequent": frequent[:SHOWN]}
