"""Pairs of rows whose sets of n-grams have at least the wanted Jaccard similarity.

Rows that agree in a band are candidates; each candidate is compared exactly. Where more than CROWD rows agree in a
band (one template with other numbers), each is compared with the next NEIGHBOURS of them only, and the rows are
counted: the work stays bounded. Neighbours are those that agree in the next band too, then those with the next digest,
so the order of the rows does not matter.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from weitiao.core.errors import InvalidValue
from weitiao.data.duplicates.signatures import Signatures

CROWD, NEIGHBOURS = 16, 8  # rows that agree in a band, above which a row is compared with its neighbours only
GRAMS = 4_000_000  # n-grams that are gathered at a time
SKETCHES = 100_000  # pairs whose sketches are compared at a time
BITS_OF_BYTE = np.array([bin(i).count("1") for i in range(256)], np.uint8)
ROUNDING = 1e-6
HALF = np.uint64(32)
Pairs = tuple[np.ndarray, np.ndarray]
"""Two arrays of the same length: a row and a similar row."""


class DistinctRows:
    """The rows of several shards, without those that are equal once folded, in the order of their digests."""

    def __init__(self, shards: Sequence[Signatures]) -> None:
        if len({(x.similarity, len(x.bands)) for x in shards}) > 1:
            raise InvalidValue("shards were signed with different similarities")
        self._shards = shards
        self.similarity = shards[0].similarity
        digests = np.concatenate([x.digests for x in shards])
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        digests = digests[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (digests[1:] != digests[:-1]).any(1)
        self.first = order[is_new]
        """(distinct,) the row that each stands for: the first of the equal ones, since lexsort is stable."""
        self.distinct_of = np.empty(len(order), np.int64)
        """(rows,) which distinct row each row is equal to."""
        self.distinct_of[order] = np.cumsum(is_new) - 1
        self._offsets = np.cumsum([0, *(len(x) for x in shards)])
        self._sizes = np.concatenate([np.diff(x.starts) for x in shards])[self.first]
        self._sketches = np.concatenate([x.sketches for x in shards])[self.first]
        self.capped = np.zeros(len(self.first), bool)
        """(distinct,) rows that were not compared with all their candidates; complete after `similar_pairs`."""

    def __len__(self) -> int:
        return len(self.first)

    def similar_pairs(self, is_settled: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None) -> Iterator[Pairs]:
        """Similar pairs of distinct rows, some of them several times.

        Args:
            is_settled: of candidates, which need not be compared.
        """
        for band in range(len(self._shards[0].bands)):
            order, keys, crowded = self._order(band)
            self.capped[order[crowded]] = True
            for step in range(1, CROWD):
                is_candidate = keys[step:] == keys[:-step]
                if step > NEIGHBOURS:
                    is_candidate &= ~crowded[step:]
                if not is_candidate.any():
                    break
                left, right = order[:-step][is_candidate], order[step:][is_candidate]
                least = np.minimum(self._sizes[left], self._sizes[right])
                likely = least >= self.similarity * np.maximum(self._sizes[left], self._sizes[right])
                if is_settled:
                    likely &= ~is_settled(left, right)
                yield from self._compared(*self._possible(left[likely], right[likely]))

    def _order(self, band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows in the order of their hashes of a band, these hashes, and whether more than CROWD rows have the same."""
        keys = self._band(band)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        crowded = np.zeros(len(keys), bool)
        if len(keys):
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            sizes = np.diff(starts, append=len(keys))
            crowded = np.repeat(sizes > CROWD, sizes)
        positions = np.flatnonzero(crowded)
        following = self._band(band + 1)[order[positions]] if len(positions) else positions
        order[positions] = order[positions][np.lexsort((following, keys[positions]))]
        return order, keys, crowded

    def _band(self, band: int) -> np.ndarray:
        """(distinct,) uint64: hashes of a band; after the last comes the first."""
        return np.concatenate([x.bands[band % len(x.bands)] for x in self._shards])[self.first]

    def _possible(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        """The candidates whose sketches do not rule out that they are similar.

        Each bit in which two sketches differ stands for an n-gram that only one of the rows has (Sandes et al. 2017,
        "Bitmap Filter: Speeding up Exact Set Similarity Joins with Bitwise Operations", arXiv 1711.07295).
        """
        parts = []
        for start in range(0, len(left), SKETCHES):
            a, b = left[start : start + SKETCHES], right[start : start + SKETCHES]
            least = BITS_OF_BYTE[self._sketches[a] ^ self._sketches[b]].sum(1)
            most = (1 - self.similarity) / (1 + self.similarity) * (self._sizes[a] + self._sizes[b])
            parts.append(start + np.flatnonzero(least <= most + ROUNDING))
        chosen = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return left[chosen], right[chosen]

    def _compared(self, left: np.ndarray, right: np.ndarray) -> Iterator[Pairs]:
        """The candidates that are similar, some at a time."""
        totals = np.cumsum(self._sizes[left] + self._sizes[right])
        start = 0
        while start < len(left):
            before = totals[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(totals, before + GRAMS, "right")))
            a, b = left[start:stop], right[start:stop]
            common = self._common(a, b)
            similar = common + ROUNDING >= self.similarity * (self._sizes[a] + self._sizes[b] - common)
            if similar.any():
                yield a[similar], b[similar]
            start = stop

    def _common(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(pairs,) How many n-grams both rows of each pair have."""
        pair = np.arange(len(left), dtype=np.uint64)
        keyed = np.concatenate([self._keyed(left, pair), self._keyed(right, pair)])
        keyed.sort()
        twice = keyed[1:][keyed[1:] == keyed[:-1]]
        return np.bincount((twice >> HALF).astype(np.int64), minlength=len(left))

    def _keyed(self, rows: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The n-grams of rows, each with the number of its pair in the upper half."""
        originals, parts = self.first[rows], []
        for shard, offset in zip(self._shards, self._offsets):
            chosen = (originals >= offset) & (originals < offset + len(shard))
            ids = originals[chosen] - offset
            starts, sizes = shard.starts[ids], shard.starts[ids + 1] - shard.starts[ids]
            skipped = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
            grams = shard.grams[skipped + np.arange(len(skipped))].astype(np.uint64)
            parts.append((np.repeat(number[chosen], sizes) << HALF) | grams)
        return np.concatenate(parts)
