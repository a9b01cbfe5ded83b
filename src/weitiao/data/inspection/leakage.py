"""Rows to evaluate on that are in the training data: then a score says what was memorized.

A rewritten row is not found.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from weitiao.data.duplicates.clusters import SIMILARITY
from weitiao.data.duplicates.overlap import overlap
from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.inspection.conflicts import digests_of
from weitiao.data.inspection.row_store import RowBatch, RowStore
from weitiao.data.inspection.row_texts import RowTexts
from weitiao.data.inspection.unit_grams import LEAST, UNITS, GramSearch

KINDS = ("row", "near", "input", "inside")
MAX_LISTED = 10_000  # training rows
LEAST_CHARACTERS = 4  # of an input that counts: "hello" is in every set


def leakage(held_out: Sequence[RowTexts], training: Signatures, prompt: np.ndarray, store: RowStore) -> dict[str, Any]:
    """Held-out rows that are in the training data, each by the first kind that fits.

    row: the texts are equal; near: nearly equal; input: only the prompt is equal; inside: of the prompt's runs of 13 words
    or Chinese characters (a shorter one: of all of it), at least 80 % stand in one training text.

    Args:
        training: the signatures of the training rows, in their order.
        prompt: (rows,) uint64: digests of what is given in the training rows.

    Returns:
        {n, leaked, kinds: {kind: rows}, pairs: [[kind, held-out row, training row]]}
    """
    wholes = RowBatch(0, held_out).wholes
    leaks: dict[int, tuple[str, int]] = {}
    near = overlap(training, sign(wholes, SIMILARITY)) if len(training) and wholes else {}
    inputs = digests_of([x.prompt for x in held_out])
    order = np.argsort(prompt, kind="stable")
    at = np.minimum(np.searchsorted(prompt[order], inputs), max(len(prompt) - 1, 0))
    for i, j in near.items():
        is_same = digests_of([wholes[i]])[0] == digests_of([store.whole(j)])[0]
        leaks[i] = ("row" if is_same else "near"), j
    for i, x in enumerate(inputs):
        row = int(order[at[i]]) if len(order) else 0
        if len(order) and prompt[row] == x and len(held_out[i].prompt.strip()) >= LEAST_CHARACTERS:
            leaks.setdefault(i, ("input", row))
    for i, row in _inside([x.prompt for x in held_out], store):
        leaks.setdefault(i, ("inside", row))
    counts = {kind: sum(k == kind for k, _ in leaks.values()) for kind in KINDS}
    pairs = sorted(([kind, i, row] for i, (kind, row) in leaks.items()), key=lambda x: (KINDS.index(x[0]), x[1]))
    return {"n": len(held_out), "leaked": len(leaks), "kinds": counts, "pairs": pairs[:MAX_LISTED], "units": [LEAST, UNITS]}


def _inside(questions: Sequence[str], store: RowStore) -> Iterator[tuple[int, int]]:
    search, first = GramSearch(questions), 0
    for batch in store.batches():
        wholes = [f"{prompt}\n{answer}" for prompt, answer in batch]
        for question, row in search.find(wholes):
            yield question, first + row
        first += len(batch)
