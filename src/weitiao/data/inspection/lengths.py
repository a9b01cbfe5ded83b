"""How long rows are, in characters; and in a model's tokens, with what each cut-off would cost."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from weitiao.core.intervals import wilson
from weitiao.data.inspection.row_store import RowBatch

QUANTILES = (0, 0.05, 0.5, 0.95, 0.99, 1)
CUT_OFFS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # tokens


class CharacterLengths:
    """Characters of what is given and of the answer."""

    def __init__(self) -> None:
        self.prompts, self.answers = array("i"), array("i")

    def add(self, batch: RowBatch) -> None:
        """Count a batch."""
        self.prompts.extend(len(x.prompt) for x in batch.rows)
        self.answers.extend(len(x.answer) for x in batch.rows)

    def result(self) -> dict[str, Any]:
        """Of `given` and, where there are some, of `answer`: see `distribution`."""
        prompt, answers = (np.array(x, np.int64) for x in (self.prompts, self.answers))
        return {"prompt": distribution(prompt), "answer": distribution(answers) if answers.any() else None}


def distribution(lengths: np.ndarray) -> dict[str, Any]:
    """n, sum, quantiles and a histogram by powers of two.

    Args:
        lengths: (rows,) int, not negative.

    >>> distribution(np.array([1, 2, 3, 100]))["bins"]
    [[1, 1], [2, 2], [64, 1]]
    """
    if not len(lengths):
        return {"n": 0, "sum": 0, "quantiles": [], "bins": []}
    powers = np.bincount(np.log2(np.maximum(lengths, 1)).astype(int))
    return {
        "n": len(lengths),
        "sum": int(lengths.sum()),
        "quantiles": [[q, int(x)] for q, x in zip(QUANTILES, np.quantile(lengths, QUANTILES, method="nearest"))],
        "bins": [[1 << i, int(n)] for i, n in enumerate(powers) if n],
    }


def cut_offs(tokens: np.ndarray, total: int) -> list[dict[str, Any]]:
    """For each maximum length the rows that are longer, and lose their end or are left out.

    Args:
        tokens: (n,) of each row that was looked at.
        total: rows of which they are a sample.

    Returns:
        {max_length, share, low, high, tokens}: `tokens` is the share of all tokens that is lost. Without an interval where
        all rows were looked at. From the first length that cuts nothing on, nothing more.
    """
    table = []
    for limit in CUT_OFFS if len(tokens) else ():
        longer = int((tokens > limit).sum())
        share = longer / len(tokens)
        low, high = wilson(share, len(tokens)) if len(tokens) < total else (share, share)
        lost = float(np.maximum(tokens - limit, 0).sum() / max(tokens.sum(), 1))
        table.append({"max_length": limit, "rows": longer, "share": share, "low": low, "high": high, "tokens": lost})
        if not longer:
            break
    return table


def shares(counts: Sequence[tuple[str, int]], n: int, total: int) -> list[dict[str, Any]]:
    """Counts as shares of n, with Wilson's interval where n rows are a sample of `total`."""
    table = []
    for name, count in counts:
        low, high = wilson(count / n, n) if n < total else (count / n, count / n)
        table.append({"name": name, "rows": count, "share": count / n, "low": low, "high": high})
    return table
