"""Turns are dropped from a conversation until it fits: `overlong: drop_turns`, and the same function when a model is used.

Kept in any case: system messages (and tools), and the exchanges whose answers are wanted, which is the last one when a
model is asked. Of the others, whole exchanges (data/chat/exchanges.py) are dropped, in this order:

    1  fillers                              "OK, thanks!" "You're welcome."             the oldest first
    2  exchanges without anything in common with what is asked or answered              the oldest first
    3  those that share rare words with it: at most a quarter of all                    those that share least first

Nothing is rewritten or summarized. LangChain's `trim_messages` and OpenAI's `truncation: auto` know only the oldest; NVIDIA
Automodel cuts agent chats by turns, and keeps the system message, the tools and the last exchange (issue 2366).
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from weitiao.core.example import Turn
from weitiao.data.chat.exchanges import Unit, exchanges, filler_exchanges, ngrams, steps

Reason = Literal["filler", "oldest", "overlap"]
Size = Callable[[Sequence[Turn]], int]
"""Tokens of a conversation, in the chat template and with the tools."""
RELEVANT = 0.25  # share of the exchanges that are kept longest for what they share
STRONG = 0.3  # of the most that an exchange shares: below, it is chance
RARE = 0.1  # share of the exchanges in which a rare n-gram occurs, at most; and in two it always may


@dataclass(frozen=True)
class Selection:
    """What is left of a conversation."""

    turns: tuple[int, ...]
    """Indices of turns, ascending."""
    dropped: tuple[tuple[int, Reason], ...] = ()
    """The others, each with its reason, in the order in which they were dropped."""
    size: int = 0
    """Tokens."""
    for_answers: tuple[int, ...] = ()
    """Of `turns`, those that would have been dropped if the answers were not known, as when the model is used."""


def keep_last(turns: Sequence[Turn], size: Size, limit: int) -> Selection | None:
    """What is kept of a conversation that a model is asked to continue; None: not even its last exchange fits.

    Args:
        limit: tokens.
    """
    units = exchanges(turns)
    everything = tuple(range(len(turns)))
    if (whole := size(turns)) <= limit:
        return Selection(everything, size=whole)
    always = tuple(i for i, turn in enumerate(turns) if turn.role == "system")
    if not units:
        return None
    selection = choose(turns, always, units, [len(units) - 1], size, limit)
    if selection is None:
        question, parts = steps(turns, units[-1])
        if len(parts) > 1:
            selection = choose(turns, (*always, *question), parts, [len(parts) - 1], size, limit)
            selection = selection and _with_dropped(selection, [i for unit in units[:-1] for i in unit])
    return selection


def choose(
    turns: Sequence[Turn],
    always: Unit,
    units: Sequence[Unit],
    required: Collection[int],
    size: Size,
    limit: int,
    answers: bool = False,
) -> Selection | None:
    """As many units as fit, dropped in the order of `drop_order`; None: not even the required ones fit.

    Args:
        always: turns that are kept besides.
        required: positions in `units` of those that must be kept.
        limit: tokens.
        answers: the answers of the required units are known, because they are trained on.
    """
    order = drop_order(turns, units, required, answers)

    def remaining(n: int) -> tuple[int, ...]:
        gone = {k for k, _ in order[:n]}
        return tuple(sorted({*always, *(i for k, unit in enumerate(units) if k not in gone for i in unit)}))

    def size_without(n: int) -> int:
        return size([turns[i] for i in remaining(n)])

    low, high = 0, len(order)  # size_without(high) fits, or nothing does
    if size_without(high) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size_without(middle) <= limit else (middle + 1, high)
    dropped: tuple[tuple[int, Reason], ...] = tuple((i, reason) for k, reason in order[:low] for i in units[k])
    gone = {k for k, _ in order[:low]}
    unknown = drop_order(turns, units, required)[:low] if answers else ()
    return Selection(
        remaining(low), dropped, size_without(low), tuple(i for k, _ in unknown if k not in gone for i in units[k])
    )


def drop_order(
    turns: Sequence[Turn], units: Sequence[Unit], required: Collection[int], answers: bool = False
) -> list[tuple[int, Reason]]:
    """The units that may be dropped, first those that go first."""
    candidates = [k for k in range(len(units)) if k not in required]
    scores = overlaps(turns, units, required, answers)
    least = STRONG * max((scores[k] for k in candidates), default=0.0)
    ranked = sorted((k for k in candidates if scores[k] > max(least, 0.0)), key=lambda k: (-scores[k], -k))
    relevant = ranked[: max(1, math.ceil(RELEVANT * len(candidates)))]
    fillers = filler_exchanges(turns, units) - set(relevant)
    first = [k for k in candidates if k in fillers]
    then = [k for k in candidates if k not in fillers and k not in relevant]
    return [
        *((k, "filler") for k in first),
        *((k, "oldest") for k in then),
        *((k, "overlap") for k in reversed(relevant)),
    ]


def overlaps(turns: Sequence[Turn], units: Sequence[Unit], required: Collection[int], answers: bool = False) -> list[float]:
    """How much each unit has in common with a required one: the sum over the rare n-grams of both, the rarer the more.

        sum of log(N / df)      N units, of which df have the n-gram; of the required units, the one that shares most counts

    Of a required unit count the user's turns, and with `answers` the assistant's that are trained on.
    """
    grams = [frozenset[str]().union(*(ngrams(turns[i].text) for i in unit)) for unit in units]
    frequency = Counter(gram for own in grams for gram in own)
    most = max(2.0, RARE * len(units))
    weight = {gram: math.log(len(units) / n) for gram, n in frequency.items() if n <= most}
    wanted = [
        frozenset[str]().union(
            *(ngrams(turns[i].text) for i in units[k] if turns[i].role == "user" or (answers and turns[i].is_target))
        )
        & weight.keys()
        for k in required
    ]
    return [max((sum(weight[x] for x in own & target) for target in wanted), default=0.0) for own in grams]


def _with_dropped(selection: Selection, turns: Sequence[int]) -> Selection:
    before: list[tuple[int, Reason]] = [(i, "oldest") for i in turns]
    return replace(selection, dropped=(*before, *selection.dropped))
