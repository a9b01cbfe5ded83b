"""What is kept of a text to find its near-duplicates: a digest, the set of its n-grams, and MinHash bands of that set.

Broder 1997, "On the Resemblance and Containment of Documents", sec. 3: two sets have the same smallest hash with a
probability equal to their Jaccard similarity. Banding: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
sec. 3.4: rows that agree in all hashes of one band are compared.

A text's signature depends on nothing else, so that shards can be signed anywhere, in any order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from weitiao.core.errors import DataError
from weitiao.data.duplicates.folding import folded_texts
from weitiao.data.duplicates.ngrams import ngram_sets

HASHES = 100
MAX_MISS = 0.001  # share of the pairs at the threshold that no band may bring together
BATCH_ROWS, BATCH_CHARACTERS = 4096, 500_000  # that are signed at a time
CACHED = 50_000  # n-grams that are hashed at a time: they stay in the processor's cache
ARRAYS = ("digests", "sketches", "grams", "starts", "bands")
SKETCH = 256  # bits


def band_shape(similarity: float) -> tuple[int, int]:
    """How many bands of how many hashes: the longest bands that miss at most MAX_MISS of the pairs at the threshold.

    >>> band_shape(0.8), band_shape(0.5)
    ((20, 5), (50, 2))
    """
    for length in range(HASHES, 1, -1):
        count = HASHES // length
        if (1 - similarity**length) ** count <= MAX_MISS:
            return count, length
    return HASHES, 1


@dataclass(frozen=True)
class Signatures:
    """The signatures of some rows."""

    similarity: float
    """The threshold that the bands are made for."""
    digests: np.ndarray
    """(rows, 2) uint64: of the whole folded text."""
    sketches: np.ndarray
    """(rows, SKETCH // 8) uint8: bit i is the parity of the number of n-grams whose hash starts with i."""
    grams: np.ndarray
    """(total,) uint32: the hashes of each row's n-grams, sorted within a row."""
    starts: np.ndarray
    """(rows + 1,) int64: where each row's n-grams start."""
    bands: np.ndarray
    """(bands, rows) uint64."""

    def __len__(self) -> int:
        return len(self.digests)

    def save(self, folder: Path) -> None:
        """Write the arrays, one file each."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "similarity.npy", np.float64(self.similarity))
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "Signatures":
        """Open what `save` wrote; n-grams and bands stay on disk until they are needed.

        Raises:
            DataError: a file is missing or is no array.
        """
        try:
            digests, sketches, grams, starts, bands = (
                np.load(folder / f"{name}.npy", mmap_mode="r" if name in ("grams", "bands") else None) for name in ARRAYS
            )
            return cls(float(np.load(folder / "similarity.npy")), digests, sketches, grams, starts, bands)
        except (OSError, ValueError) as error:
            raise DataError("{folder} holds no signatures of rows: {error}", folder=folder, error=error) from None


def sign(texts: Iterable[str], similarity: float = 0.8) -> Signatures:
    """Sign texts. They are read once and not kept.

    Args:
        similarity: the Jaccard similarity of n-gram sets from which two rows are near-duplicates, above 0 to 1.
    """
    digests, sketches, bands, sizes = [], [], [], []
    grams = bytearray()  # the most of all: grows in place, where joining a list of arrays would need it twice
    for batch in _batches(texts):
        batch_grams, starts, batch_digests = ngram_sets(folded_texts(batch))
        digests.append(batch_digests)
        sketches.append(_sketches(batch_grams, starts))
        grams += batch_grams.tobytes()
        sizes.append(np.diff(starts))
        bands.append(_bands(batch_grams, starts, similarity))
    if not digests:
        return _nothing(similarity)
    return Signatures(
        similarity,
        _concatenate(digests),
        _concatenate(sketches),
        np.frombuffer(grams, np.uint32),
        np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
        _concatenate(bands, axis=1),
    )


def _nothing(similarity: float) -> Signatures:
    """The signatures of no rows."""
    count, _ = band_shape(similarity)
    sketches, grams = np.zeros((0, SKETCH // 8), np.uint8), np.zeros(0, np.uint32)
    return Signatures(
        similarity, np.zeros((0, 2), np.uint64), sketches, grams, np.zeros(1, np.int64), np.zeros((count, 0), np.uint64)
    )


def _concatenate(parts: list[np.ndarray], axis: int = 0) -> np.ndarray:
    """Join arrays and let go of the parts."""
    joined = np.concatenate(parts, axis=axis)
    parts.clear()
    return joined


def _batches(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _sketches(grams: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(rows, SKETCH // 8) uint8."""
    count = len(starts) - 1
    bits = np.repeat(np.arange(count), np.diff(starts)) * SKETCH + (grams >> np.uint32(24))
    return np.packbits((np.bincount(bits, minlength=count * SKETCH) & 1).astype(bool).reshape(count, SKETCH), axis=1)


def _bands(grams: np.ndarray, starts: np.ndarray, similarity: float) -> np.ndarray:
    """(bands, rows) uint64: a hash of each band's smallest hashes."""
    count, length = band_shape(similarity)
    bands = np.zeros((count, len(starts) - 1), np.uint64)
    row = 0
    while row < len(starts) - 1:
        stop = max(row + 1, int(np.searchsorted(starts, starts[row] + CACHED, "right")) - 1)
        part, first = grams[starts[row] : starts[stop]], starts[row:stop] - starts[row]
        hashes = np.empty_like(part)
        for k, (factor, summand) in enumerate(islice(_permutations(), count * length)):
            np.multiply(part, factor, out=hashes)
            np.add(hashes, summand, out=hashes)
            band = bands[k // length, row:stop]
            band ^= np.minimum.reduceat(hashes, first)
            band *= np.uint64(0x94D049BB133111EB)
            band ^= band >> np.uint64(29)
        row = stop
    return bands


@cache
def _permutations() -> tuple[tuple[np.uint32, np.uint32], ...]:
    """Factors (odd) and summands of the hashes x -> factor * x + summand modulo 2**32; the same on every machine."""
    numbers = np.random.PCG64(20_000_101).random_raw(2 * HASHES)  # the raw stream never changes with numpy's version
    numbers = (numbers >> np.uint64(32)).astype(np.uint32).reshape(-1, 2)
    return tuple((factor | np.uint32(1), summand) for factor, summand in numbers)
