"""Runs of words and Chinese characters as hashes, for many texts at a time: is a question somewhere inside a text?

A unit is a word, or one character of writing without spaces; case, width and punctuation do not count. 13 units in a row:
Brown et al. 2020, "Language Models are Few-Shot Learners", app. C.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from weitiao.data.duplicates.folding import CODE_POINTS, folded_texts
from weitiao.data.duplicates.ngrams import BASE, MIX, has_no_spaces

UNITS = 13
LEAST = 8  # units of a shorter text that is searched for as a whole; fewer stand in texts by chance
CONTAINED = 0.8  # share of a text's runs that stand in another one, from which it is inside it
COMMON = 20  # texts that are searched for, above which a run is their form (a greeting, a footer) and not their content
LONGEST_WORD = 64  # characters from which powers are used again
BITS = 22  # of the table that rules most runs out
HALF = np.uint64(32)


class GramSearch:
    """Texts to be found in others: at least CONTAINED of a text's runs stand in one of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        units, owners = _units(texts)
        counts = np.bincount(owners, minlength=len(texts))
        parts = []
        for length, hashes, starts in _grams(units, owners):
            own = owners[starts]
            chosen = counts[own] >= UNITS if length == UNITS else counts[own] == length
            parts.append(
                np.stack([hashes[chosen], own[chosen].astype(np.uint64), np.full(chosen.sum(), length, np.uint64)])
            )
        columns = np.unique(np.concatenate(parts, axis=1), axis=1) if parts else np.zeros((3, 0), np.uint64)
        _, repeats = np.unique(columns[0], return_counts=True)
        columns = columns[:, np.repeat(repeats <= COMMON, repeats)]
        self._hashes, self._owners = columns[0], columns[1].astype(np.int64)
        self._lengths = {int(x) for x in columns[2]}
        self._totals = np.bincount(self._owners, minlength=len(texts))
        self._table = np.zeros(1 << BITS, bool)
        self._table[_short(self._hashes)] = True

    def find(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """(text that was searched for, index of a text that it is in), each pair once."""
        if not len(self._hashes):
            return []
        units, owners = _units(texts)
        parts = []
        for length, hashes, starts in _grams(units, owners):
            if length in self._lengths:
                likely = np.flatnonzero(self._table[_short(hashes)])
                parts.append(self._hits(hashes[likely], owners[starts[likely]]))
        if not parts:
            return []
        hits = np.unique(np.concatenate(parts, axis=1), axis=1)
        pairs, counts = np.unique(hits[:2], axis=1, return_counts=True)
        enough = counts >= CONTAINED * self._totals[pairs[0]]
        return [(int(a), int(b)) for a, b in pairs[:, enough].T]

    def _hits(self, hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(3, hits) int64: the text that was searched for, the row that has one of its runs, and which run that is."""
        first = np.searchsorted(self._hashes, hashes, "left")
        sizes = np.searchsorted(self._hashes, hashes, "right") - first
        skipped = np.repeat(first - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) if len(sizes) else first
        positions = skipped + np.arange(len(skipped))
        return np.stack([self._owners[positions], np.repeat(rows, sizes), np.repeat(first, sizes)])


def _short(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - BITS)).astype(np.int64)


def _units(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(units,) uint64: the hash of each; (units,) int64: the text that it is in."""
    folded = folded_texts(texts)
    kinds = _kinds()[folded.codes]  # 0: between words, 1: in a word, 2: a unit of its own
    rows = np.repeat(np.arange(len(folded)), np.diff(folded.starts))
    starts_here = kinds == 2
    before = np.concatenate([[0], kinds[:-1]])
    is_first = np.zeros(len(kinds) + 1, bool)
    is_first[folded.starts] = True
    starts_here |= (kinds == 1) & ((before != 1) | is_first[:-1])
    used = np.flatnonzero(kinds > 0)
    if not len(used):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    firsts = np.flatnonzero(starts_here[used])
    inside = np.arange(len(used)) - np.repeat(firsts, np.diff(np.append(firsts, len(used))))
    values = (folded.codes[used].astype(np.uint64) + np.uint64(1)) * _powers(LONGEST_WORD)[inside % LONGEST_WORD]
    return np.add.reduceat(values, firsts) * MIX, rows[used[firsts]]


def _grams(units: np.ndarray, owners: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each length from LEAST to UNITS: (length, hashes of the runs, indices of their first units)."""
    sums = np.zeros(len(units), np.uint64)
    for k, power in enumerate(_powers(UNITS)):
        reach = len(units) - k
        if reach <= 0:
            return
        sums = sums[:reach] + units[k:] * power
        if k + 1 >= LEAST:
            starts = np.flatnonzero(owners[:reach] == owners[k:])
            hashes = sums[starts]
            yield k + 1, (hashes ^ (hashes >> HALF)) * MIX, starts


@cache
def _powers(count: int) -> np.ndarray:
    """(count,) uint64: 1, BASE, BASE**2 ..."""
    powers = np.full(count, BASE)
    powers[0] = 1
    return np.multiply.accumulate(powers)


@cache
def _kinds() -> np.ndarray:
    """(CODE_POINTS,) uint8."""
    alphanumeric = np.fromiter((chr(i).isalnum() for i in range(CODE_POINTS)), bool, CODE_POINTS)
    return alphanumeric.astype(np.uint8) + (alphanumeric & has_no_spaces())
