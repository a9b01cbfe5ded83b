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
LONGEST_WORD = 64  # characters from which powers are used again
BITS = 22  # of the table that rules most runs out
HALF = np.uint64(32)


class GramSearch:
    """Texts to be found in others."""

    def __init__(self, texts: Sequence[str]) -> None:
        units, owners = _units(texts)
        counts = np.bincount(owners, minlength=len(texts))
        self._searched: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # units -> (sorted hashes, their texts)
        for length, hashes, starts in _grams(units, owners):
            own = owners[starts]
            chosen = counts[own] >= UNITS if length == UNITS else counts[own] == length
            if chosen.any():
                order = np.argsort(hashes[chosen], kind="stable")
                self._searched[length] = hashes[chosen][order], own[chosen][order]
        self._table = np.zeros(1 << BITS, bool)
        for hashes, _ in self._searched.values():
            self._table[_short(hashes)] = True

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """(text that was searched for, index of a text that it is in)."""
        if not self._searched:
            return
        units, owners = _units(texts)
        for length, hashes, starts in _grams(units, owners):
            if length not in self._searched:
                continue
            likely = np.flatnonzero(self._table[_short(hashes)])
            hashes_searched, whose = self._searched[length]
            at = np.minimum(np.searchsorted(hashes_searched, hashes[likely]), len(hashes_searched) - 1)
            for i in np.flatnonzero(hashes_searched[at] == hashes[likely]):
                position, row = int(at[i]), int(owners[starts[likely[i]]])
                while position < len(hashes_searched) and hashes_searched[position] == hashes[likely[i]]:
                    yield int(whose[position]), row
                    position += 1


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
