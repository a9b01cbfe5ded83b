"""The same text with another label, or the same question with another answer."""

from array import array
from typing import Any

import numpy as np

from weitiao.data.duplicates.folding import FoldedTexts, folded_texts
from weitiao.data.duplicates.ngrams import text_digests
from weitiao.data.inspection.occurrences import EXAMPLES, Occurrences
from weitiao.data.inspection.row_store import RowBatch


def digests_of(texts: list[str]) -> np.ndarray:
    """(texts,) uint64: equal for texts that are equal once folded (case, width, spaces, traditional characters)."""
    folded: FoldedTexts = folded_texts(texts)
    return text_digests(folded)[:, 0]


class Conflicts:
    """Digests of prompts and of what is learnt."""

    def __init__(self) -> None:
        self._prompts, self._learnt = array("Q"), array("Q")
        self._labels: dict[str, int] = {}
        self._label_ids = array("i")

    def add(self, batch: RowBatch) -> None:
        """Digest a batch."""
        self._prompts.frombytes(digests_of([x.prompt for x in batch.rows]).tobytes())
        self._learnt.frombytes(digests_of([x.answer for x in batch.rows]).tobytes())
        self._label_ids.extend(self._labels.setdefault(x.label, len(self._labels)) for x in batch.rows)

    @property
    def prompts(self) -> np.ndarray:
        """(rows,) uint64: digests of prompts."""
        return np.frombuffer(self._prompts, np.uint64) if self._prompts else np.zeros(0, np.uint64)

    @property
    def label_ids(self) -> np.ndarray:
        """(rows,) int32: equal for equal labels; all 0 where rows have none."""
        return np.frombuffer(self._label_ids, np.int32) if self._label_ids else np.zeros(0, np.int32)

    @property
    def label_names(self) -> list[str]:
        """The label of each id."""
        return list(self._labels)

    def result(self) -> dict[str, Any]:
        """{labels, answers: rows that contradict another one; label_groups, answer_groups: groups of rows with one text}.

        Example groups are lists of rows, one for each different label or answer.
        """
        values = np.frombuffer(self._learnt, np.uint64) if self._learnt else np.zeros(0, np.uint64)
        by_label = _contradictions(self.prompts, self.label_ids.astype(np.uint64))
        by_answer = _contradictions(self.prompts, values)
        return {
            "labels": by_label[0],
            "label_groups": by_label[1],
            "answers": by_answer[0],
            "answer_groups": by_answer[1],
        }


def _contradictions(prompt: np.ndarray, values: np.ndarray) -> tuple[Occurrences, dict[str, Any]]:
    """Rows whose text occurs with another value too: the rows, and {groups, examples: [[row, row], ...]}."""
    order = np.lexsort((values, prompt))
    texts, values = prompt[order], values[order]
    if not len(order):
        return Occurrences(), {"groups": 0, "examples": []}
    starts = np.flatnonzero(np.concatenate([[True], texts[1:] != texts[:-1]]))
    ends = np.append(starts[1:], len(texts))
    differs = values[starts] != values[ends - 1]  # sorted within a text
    starts, ends = starts[differs], ends[differs]
    rows = np.sort(np.concatenate([order[a:b] for a, b in zip(starts, ends)])) if len(starts) else np.zeros(0, np.int64)
    examples = []
    for a, b in sorted(zip(starts, ends), key=lambda x: int(order[x[0] : x[1]].min()))[:EXAMPLES]:
        _, first_of_value = np.unique(values[a:b], return_index=True)
        examples.append(sorted(int(order[a + i]) for i in first_of_value)[:EXAMPLES])
    return Occurrences.of(rows), {"groups": len(starts), "examples": examples}
