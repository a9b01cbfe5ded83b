"""The order of rows that keeps the shares of groups in all tokens, from step to step.

Each group has a stream of its own: its rows in random order, then all of them in another order, and so on without end. A
row whose middle is token m of its group's stream has its turn at m / share, and rows of all groups are sorted by their
turns (start-time fair queueing, Goyal et al. 1996, with the middle of a row as its time). When T tokens were used, a group
has had share x T of them, up to about half of a row:

    share 2/3   |--a--|-a-|----a----|-a-|      turns ->    a b a a a b a ...
    share 1/3   |--b--|------b------|

An epoch is a stretch of these turns. What an epoch leaves out of a group is what the next one begins with, and any epoch
can be made without those before it.
"""

import numpy as np

from weitiao.core.mixing import Mixture


class MixedOrder:
    """The rows of each epoch, in their order."""

    def __init__(self, mixture: Mixture, lengths: np.ndarray, seed: int) -> None:
        """
        Args:
            lengths: [rows] tokens of each row.
        """
        self.mixture, self.lengths, self.seed = mixture, lengths, seed
        self.members = [np.flatnonzero(mixture.group == g) for g in range(len(mixture.shares))]

    def epoch(self, number: int) -> np.ndarray:
        """Row ids; a pure function of rows, seed and the number."""
        parts = [self._turns(g, number) for g, share in enumerate(self.mixture.shares) if share > 0]
        ids, turns = (np.concatenate(x) for x in zip(*parts))
        return ids[np.argsort(turns, kind="stable")]

    def _turns(self, g: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(row ids of a group in an epoch, their turns)."""
        share, members = self.mixture.shares[g], self.members[g]
        begin, end = (x * self.mixture.epoch_tokens * share for x in (number, number + 1))
        a_pass = int(self.lengths[members].sum())
        ids, middles = [members[:0]], [np.zeros(0)]
        k = int(begin // a_pass)
        while k * a_pass < end:
            order = np.random.default_rng((self.seed, g, k)).permutation(members)
            length = self.lengths[order]
            middle = k * a_pass + np.cumsum(length) - length / 2
            taken = (middle >= begin) & (middle < end)
            ids.append(order[taken])
            middles.append(middle[taken])
            k += 1
        return np.concatenate(ids), np.concatenate(middles) / share
