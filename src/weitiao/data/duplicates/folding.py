"""The form in which texts are compared: that of `core.example.plain`, and traditional characters as simplified ones.

Many texts at a time, as code points: numpy counts and hashes them without a Python loop.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unicodedata import normalize

import numpy as np

from weitiao.core.example import plain

CODE_POINTS = 0x110000
TRADITIONAL = Path(__file__).with_name("traditional.txt")
END = "\0"  # between texts while they are folded: normalization and letter case leave it alone
SPACES = re.compile(r"\s+")
SPACES_AT_END = re.compile(f" ?{END} ?")


@dataclass(frozen=True)
class FoldedTexts:
    """Folded texts, one after the other."""

    codes: np.ndarray
    """(total,) uint32: code points."""
    starts: np.ndarray
    """(rows + 1,) int64: where each text starts, and the total."""

    def __len__(self) -> int:
        return len(self.starts) - 1


def folded_texts(texts: Sequence[str]) -> FoldedTexts:
    """Fold texts: NFKC, lower case, single spaces, simplified characters.

    >>> folded = folded_texts(["Ｈello  World", "臺灣"])
    >>> "".join(map(chr, folded.codes)), folded.starts.tolist()
    ('hello world台湾', [0, 11, 13])
    """
    joined = END.join(texts)
    if joined.count(END) == len(texts) - 1:
        joined = SPACES.sub(" ", normalize("NFKC", joined)).casefold()
        joined = SPACES_AT_END.sub(END, joined).strip(" ")
    else:  # a text has the separator in it
        joined = END.join(plain(text).replace(END, "\ufffd") for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_end = codes == 0
    ends = np.append(np.flatnonzero(is_end), len(codes)) if texts else np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends - np.arange(len(ends))])
    return FoldedTexts(_simplified()[codes[~is_end]], starts)


@cache
def _simplified() -> np.ndarray:
    """(CODE_POINTS,) uint32: the simplified form of each code point; itself where it has none."""
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    lines = TRADITIONAL.read_text(encoding="utf-8").splitlines()
    pairs = "".join(line for line in lines if not line.startswith("#"))
    codes = np.frombuffer(pairs.encode("utf-32-le"), np.uint32).reshape(-1, 2)
    table[codes[:, 0]] = codes[:, 1]
    return table


@cache
def traditional_characters() -> np.ndarray:
    """(CODE_POINTS,) bool: characters that have another, simplified form."""
    return _simplified() != np.arange(CODE_POINTS, dtype=np.uint32)
