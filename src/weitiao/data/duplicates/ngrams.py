"""The n-grams of folded texts, as hashes: two characters where there are Han characters, kana or hangul, five elsewhere.

An edit changes as many n-grams as an n-gram has characters. Chinese words have one or two, so two are enough; two letters
of a Latin word are in most texts. n is chosen at each place and not for each text, so that no share of English words
turns a Chinese text into another kind of text.
"""

from functools import cache
from hashlib import blake2b

import numpy as np

from weitiao.data.duplicates.folding import CODE_POINTS, FoldedTexts

SHORT, LONG = 2, 5  # characters of an n-gram with and without Han, kana or hangul nearby
NO_SPACES = ((0x2E80, 0xA000), (0xAC00, 0xD800), (0xF900, 0xFB00), (0x1B000, 0x1B170), (0x20000, 0x33480))
"""Code points of writing in which a character is a syllable or a word: Han, kana, hangul, and their punctuation."""
BASE, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)  # odd constants: those of splitmix64
HALF = np.uint64(32)


def ngram_sets(texts: FoldedTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each text's set of n-grams, and its digest.

    A text that is shorter than one n-gram is compared whole: its set holds one hash of all of it.

    Returns:
        (grams, starts, digests): grams (total,) uint32, sorted within each text, text i from starts[i] to starts[i + 1];
        digests (rows, 2) uint64: blake2b of the whole text.
    """
    digests = text_digests(texts)
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(texts.starts))
    hashes, valid = _hashes(texts)
    keyed = (rows[valid] << HALF) | hashes[valid]
    without = np.ones(len(texts), bool)
    without[(keyed >> HALF).astype(np.int64)] = False
    ids = np.flatnonzero(without)
    keyed = np.concatenate([keyed, (ids.astype(np.uint64) << HALF) | (digests[ids, 0] >> HALF)])
    keyed.sort()
    keyed = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])] if len(keyed) else keyed
    sizes = np.bincount((keyed >> HALF).astype(np.int64), minlength=len(texts))
    return keyed.astype(np.uint32), np.concatenate([[0], np.cumsum(sizes)]), digests


def _hashes(texts: FoldedTexts) -> tuple[np.ndarray, np.ndarray]:
    """The hash of the n-gram that starts at each place (upper half 0), and whether there is one."""
    codes, total = texts.codes, len(texts.codes)
    positions = np.arange(total)
    left = np.repeat(texts.starts[1:], np.diff(texts.starts)) - positions  # characters up to the end of the text
    before = np.concatenate([[0], np.cumsum(has_no_spaces()[codes], dtype=np.int32)])
    short = before[positions + np.minimum(left, LONG)] > before[:-1]
    padded = np.concatenate([codes, np.zeros(LONG, np.uint32)]).astype(np.uint64)
    pair = padded[:total] * BASE + padded[1 : total + 1]
    five = pair.copy()
    for k in range(SHORT, LONG):
        five = five * BASE + padded[k : total + k]
    value = np.where(short, pair, ~five)
    value = (value ^ (value >> HALF)) * MIX
    return value >> HALF, left >= np.where(short, SHORT, LONG)


@cache
def has_no_spaces() -> np.ndarray:
    """(CODE_POINTS,) bool: characters of NO_SPACES."""
    table = np.zeros(CODE_POINTS, bool)
    for start, end in NO_SPACES:
        table[start:end] = True
    return table


def text_digests(texts: FoldedTexts) -> np.ndarray:
    """(rows, 2) uint64: blake2b of each text."""
    code_bytes = memoryview(texts.codes.tobytes())
    starts = (texts.starts * 4).tolist()
    joined = b"".join(blake2b(code_bytes[a:b], digest_size=16).digest() for a, b in zip(starts, starts[1:]))
    return np.frombuffer(joined, "<u8").reshape(-1, 2)
