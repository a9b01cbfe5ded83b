"""In which scripts rows are written, and which characters are lost: counted for all rows at once as code points."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from weitiao.data.duplicates.folding import CODE_POINTS, traditional_characters
from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.inspection.row_store import RowBatch
from weitiao.data.languages import KANA_SHARE

NAMES = (
    "none", "latin", "han", "kana", "hangul", "cyrillic", "arabic", "thai", "devanagari", "greek", "hebrew", "other",
    "lost",
)  # fmt: skip
RANGES = (  # of code points, and the name of what is in them; a later line wins
    ("latin", 0x41, 0x5B), ("latin", 0x61, 0x7B), ("latin", 0xC0, 0x250), ("latin", 0x1E00, 0x1F00),
    ("latin", 0xFF21, 0xFF3B), ("latin", 0xFF41, 0xFF5B),
    ("greek", 0x370, 0x400), ("greek", 0x1F00, 0x2000), ("cyrillic", 0x400, 0x530), ("other", 0x530, 0x590),
    ("hebrew", 0x590, 0x600), ("arabic", 0x600, 0x780), ("arabic", 0xFB50, 0xFE00), ("other", 0x780, 0x900),
    ("devanagari", 0x900, 0x980), ("other", 0x980, 0xE00), ("thai", 0xE00, 0xE80), ("other", 0xE80, 0x1100),
    ("hangul", 0x1100, 0x1200), ("other", 0x1200, 0x1E00), ("kana", 0x3041, 0x3100), ("hangul", 0x3130, 0x3190),
    ("han", 0x3400, 0x4DC0), ("han", 0x4E00, 0xA000), ("other", 0xA000, 0xAC00), ("hangul", 0xAC00, 0xD7A4),
    ("han", 0xF900, 0xFB00), ("han", 0x20000, 0x33480), ("lost", 0xFFFD, 0xFFFE), ("lost", 0xE000, 0xF900),
)  # fmt: skip
WORD_LETTERS = 4  # of scripts with words: as many letters weigh as much as one Han character
MAX_CHARACTERS = 100_000  # of a row: a file of text can be one row
SECOND = 0.2  # share of a second script from which a row is mixed
WEIGHTS = np.array([0.0, *(1.0 if x in ("han", "kana", "hangul") else 1 / WORD_LETTERS for x in NAMES[1:-1]), 0.0])


class Scripts:
    """The main script of each row."""

    def __init__(self) -> None:
        self._main: Counter[str] = Counter()
        self._mixed = 0
        self._lost = Occurrences()
        self._traditional, self._han = 0, 0

    def add(self, batch: RowBatch) -> None:
        """Count a batch."""
        wholes = [x[:MAX_CHARACTERS] for x in batch.wholes]
        codes = np.frombuffer("".join(wholes).encode("utf-32-le"), np.uint32)
        rows = np.repeat(np.arange(len(wholes)), [len(x) for x in wholes])
        kinds = _table()[codes]
        size = len(NAMES)
        counts = np.bincount(rows * size + kinds, minlength=len(wholes) * size).reshape(-1, size)
        for i in np.flatnonzero(counts[:, NAMES.index("lost")]):
            self._lost.add(batch.first + int(i))
        han, kana = counts[:, NAMES.index("han")], counts[:, NAMES.index("kana")]
        weights = counts * WEIGHTS
        is_japanese = kana > KANA_SHARE * (han + kana)
        weights[:, NAMES.index("kana")] = np.where(is_japanese, kana + han, kana)
        weights[:, NAMES.index("han")] = np.where(is_japanese, 0, han)
        order = np.sort(weights, axis=1)
        total = weights.sum(axis=1)
        self._mixed += int((order[:, -2] > SECOND * np.maximum(total, 1)).sum())
        main = np.where(total > 0, weights.argmax(axis=1), 0)
        self._main.update({NAMES[i]: int(n) for i, n in enumerate(np.bincount(main, minlength=size)) if n})
        traditional = np.bincount(rows[traditional_characters()[codes]], minlength=len(wholes))
        is_han = main == NAMES.index("han")
        self._han += int(is_han.sum())
        self._traditional += int((is_han & (traditional > 0.05 * np.maximum(han, 1))).sum())

    def result(self) -> dict[str, Any]:
        """rows by main script (none: digits and signs only), those with a second script, those with lost characters, and of
        the Chinese ones those in traditional characters."""
        return {
            "main": dict(self._main.most_common()),
            "mixed": self._mixed,
            "lost": self._lost,
            "han": self._han,
            "traditional": self._traditional,
        }


@cache
def _table() -> np.ndarray:
    """(CODE_POINTS,) uint8: indices in NAMES."""
    table = np.zeros(CODE_POINTS, np.uint8)
    for name, start, end in RANGES:
        table[start:end] = NAMES.index(name)
    table[[0xD7, 0xF7]] = 0
    return table
