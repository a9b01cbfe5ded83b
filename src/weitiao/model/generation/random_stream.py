"""Random numbers that follow from (seed, index, n) alone, whatever else is drawn."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)


def philox(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", sec. 4.3).

    Args:
        counters: [N, 4] 32-bit words. keys: [N, 2] 32-bit words.

    Returns:
        [N, 4] 32-bit words, as uint64.
    """
    (a, b, c, d), (k0, k1) = counters.T.astype(np.uint64), keys.T.astype(np.uint64)
    for _ in range(ROUNDS):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (second >> np.uint64(32)) ^ b ^ k0, second & LOW, (first >> np.uint64(32)) ^ d ^ k1, first & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return np.stack([a, b, c, d], 1)


def uniform(seeds: Sequence[int], indexes: Sequence[int], numbers: Sequence[int]) -> np.ndarray:
    """[N] in [0, 1), 53 bits: one number for each (seed, index, n)."""
    seed = np.array([x % 2**64 for x in seeds], np.uint64)
    index, n = np.array(indexes, np.uint64), np.array(numbers, np.uint64)
    counters = np.stack([n & LOW, n >> np.uint64(32), index & LOW, index >> np.uint64(32)], 1)
    words = philox(counters, np.stack([seed & LOW, seed >> np.uint64(32)], 1))
    bits = (words[:, 0] << np.uint64(21)) ^ (words[:, 1] >> np.uint64(11))  # 53 of the 64 bits
    return bits.astype(np.float64) / 2**53
