"""New merges of a byte-level BPE tokenizer: learnt on its own pieces, after all of its own merges.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909, sec. 3.2, continued
where the tokenizer stopped: each word, as the tokenizer splits texts, starts as the tokenizer's own pieces of it.

    猫咪   çĮ « åĴ ª     ->   (çĮ «) 猫   (åĴ ª) 咪   (猫 咪) 猫咪        the most frequent pair becomes a token

What makes them safe:

- A new merge has a rank behind all old ones, and its result is a token that did not exist. So the old merges run to their
  end first, and a text in which no new merge applies keeps its ids.
- A new token is whole characters, or the first bytes of one; never the end of one character and the beginning of the next.
- It holds a character of the scripts that are asked for. A text without them has none of the new tokens: English keeps all
  of its ids, by construction.
"""

import heapq
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weitiao.data.vocabulary_extension.byte_level import code_points, to_bytes

Pair = tuple[int, int]


@dataclass(frozen=True)
class NewMerge:
    """Two tokens that become a new one."""

    left: str
    right: str
    """As the tokenizer spells them: a character a byte."""
    count: int
    """How often the pair stood in the texts when it was merged."""

    @property
    def token(self) -> str:
        return self.left + self.right


def learn_merges(
    words: Mapping[tuple[str, ...], int],
    is_token: Callable[[str], bool],
    number: int,
    is_wanted: Callable[[int], bool],
    min_frequency: int = 2,
) -> list[NewMerge]:
    """The most frequent pairs, one after another; of equally frequent ones the one that was met first.

    Args:
        words: the tokenizer's own pieces of a word -> how often the word occurs.
        is_token: whether the tokenizer has a token of this spelling.
        number: of merges, at most.
        is_wanted: whether a code point is of the scripts that are asked for.
        min_frequency: rarer pairs are not merged.
    """
    return _Learner(words, is_token, is_wanted).learn(number, min_frequency)


class _Learner:
    """All words as one linked list of pieces; a merge changes the positions where its pair stands, and no others."""

    def __init__(
        self, words: Mapping[tuple[str, ...], int], is_token: Callable[[str], bool], is_wanted: Callable[[int], bool]
    ) -> None:
        self._is_token, self._is_wanted = is_token, is_wanted
        self._spelled: list[str] = []
        self._numbers: dict[str, int] = {}
        self._pieces, self._next, self._previous = array("i"), array("i"), array("i")
        """Of each position: the number of its token, -1 where it was merged into the one before; and its neighbours."""
        self._weights = array("q")
        self._counts: dict[Pair, int] = {}
        self._positions: dict[Pair, array[int] | None] = {}
        """Where a pair stands, or stood; None: its result may be no token."""
        for word, count in words.items():
            self._add_word(word, count)
        self._heap = [(-count, *pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def learn(self, number: int, min_frequency: int) -> list[NewMerge]:
        merges: list[NewMerge] = []
        while self._heap and len(merges) < number:
            negative, left, right = heapq.heappop(self._heap)
            count = self._counts.get((left, right), 0)
            if -negative != count:  # it changed since; its new count stands further down
                continue
            if count < min_frequency:
                break
            if self._spelled[left] + self._spelled[right] in self._numbers:  # another pair has become this token
                self._positions[left, right] = None
                del self._counts[left, right]
                continue
            merges.append(NewMerge(self._spelled[left], self._spelled[right], count))
            self._merge((left, right))
        return merges

    def _add_word(self, word: Sequence[str], count: int) -> None:
        start = len(self._pieces)
        numbers = [self._number(x) for x in word]
        end = start + len(numbers)
        self._pieces.extend(numbers)
        self._previous.extend((-1, *range(start, end - 1)))
        self._next.extend((*range(start + 1, end), -1))
        self._weights.extend([count] * len(numbers))
        for position, pair in enumerate(zip(numbers, numbers[1:]), start):
            self._count(pair, position, count)

    def _number(self, spelled: str) -> int:
        number = self._numbers.get(spelled)
        if number is None:
            number = self._numbers[spelled] = len(self._spelled)
            self._spelled.append(spelled)
        return number

    def _count(self, pair: Pair, position: int, weight: int) -> None:
        """A pair stands at a position."""
        if pair not in self._positions:
            token = self._spelled[pair[0]] + self._spelled[pair[1]]
            is_allowed = not self._is_token(token) and may_be_token(token, self._is_wanted)
            self._positions[pair] = array("i") if is_allowed else None
            if is_allowed:
                self._counts[pair] = 0
        positions = self._positions[pair]
        if positions is not None:
            positions.append(position)
            self._counts[pair] += weight

    def _merge(self, pair: Pair) -> None:
        """Merge a pair wherever it stands, and count the pairs that this makes and takes away."""
        pieces, following, previous = self._pieces, self._next, self._previous
        merged = self._number(self._spelled[pair[0]] + self._spelled[pair[1]])
        positions, changed = self._positions[pair], set[Pair]()
        assert positions is not None
        self._positions[pair] = None
        del self._counts[pair]
        for position in positions:
            right = following[position]
            if pieces[position] != pair[0] or right < 0 or pieces[right] != pair[1]:
                continue  # another merge took one of the two
            weight, before, after = self._weights[position], previous[position], following[right]
            pieces[position], pieces[right], following[position] = merged, -1, after
            if before >= 0:
                changed |= {self._take((pieces[before], pair[0]), weight), (pieces[before], merged)}
                self._count((pieces[before], merged), before, weight)
            if after >= 0:
                changed |= {self._take((pair[1], pieces[after]), weight), (merged, pieces[after])}
                previous[after] = position
                self._count((merged, pieces[after]), position, weight)
        for other in changed:
            if count := self._counts.get(other, 0):
                heapq.heappush(self._heap, (-count, *other))

    def _take(self, pair: Pair, weight: int) -> Pair:
        """A pair no longer stands somewhere."""
        if pair in self._counts:
            self._counts[pair] -= weight
        return pair


def may_be_token(spelled: str, is_wanted: Callable[[int], bool]) -> bool:
    """Whether it is whole characters, one of them wanted; or the first bytes of a character that is wanted, whichever it
    becomes."""
    points = code_points(to_bytes(spelled))
    if points is None:
        return False
    whole, partial = points
    if partial is not None:
        return not whole and is_wanted(partial[0]) and is_wanted(partial[1])
    return any(map(is_wanted, whole))


def pieces_of(new: Sequence[NewMerge]) -> dict[str, tuple[str, ...]]:
    """Of each new token the old tokens that it is made of, in order."""
    pieces: dict[str, tuple[str, ...]] = {}
    for merge in new:
        pieces[merge.token] = pieces.get(merge.left, (merge.left,)) + pieces.get(merge.right, (merge.right,))
    return pieces
