"""A conversation that is too long to train on, as several rows; each answer is trained on in exactly one of them.

    exchanges   0 1 2 3 4 5 6 7 8 9
    row 1       0 1 2 3                  the beginning, as far as it fits: nothing is dropped
    row 2         1   3 4 5              answers of 4 and 5; of those before, what is kept for them
    row 3         1       5 6 7 8
    row 4           2         7 8 9

Only exchanges that no earlier row has are trained on; the others are context. The answers of a row with their questions
fill up to half of the room, and context the rest. One answer a row would be nearer to how a model is used, at a cost that
grows with the square of the length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from weitiao.core.example import Turn
from weitiao.data.chat.drop_turns import Reason, Selection, Size, choose
from weitiao.data.chat.exchanges import Unit, exchanges, steps

ANSWERS = 0.5  # share of the room that answers and their questions take, unless one of them needs more
SHORTEST = (Turn("user", "-"),)


@dataclass(frozen=True)
class Window:
    """A part of a conversation that makes a row."""

    selection: Selection
    answers: tuple[int, ...]
    """Indices of the turns that are trained on."""

    def turns(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """What the row has of a conversation; answers of other rows are context."""
        context = set(self.selection.turns) - set(self.answers)
        return tuple(replace(turns[i], supervised=False) if i in context else turns[i] for i in self.selection.turns)


@dataclass(frozen=True)
class TooLong:
    """Answers that fit into no row."""

    answers: tuple[int, ...]
    size: int
    """Tokens of the system message, the tools and their exchange alone."""


def windows(turns: Sequence[Turn], size: Size, limit: int, answers: bool = True) -> Iterator[Window | TooLong]:
    """The rows of a conversation.

    Args:
        limit: tokens of a row.
        answers: choose context by the answers, too. False: as when a model is asked, for rows that it is measured on.
    """
    always = tuple(i for i, turn in enumerate(turns) if turn.role == "system")
    yield from _Conversation(turns, size, limit, answers).windows(always, exchanges(turns))


@dataclass(frozen=True)
class _Conversation:
    all_turns: Sequence[Turn]
    size: Size
    limit: int
    by_answers: bool

    def windows(self, always: Unit, units: Sequence[Unit], dropped: Unit = ()) -> Iterator[Window | TooLong]:
        """The rows of some turns.

        Args:
            always: turns that are in every row, as far as they come before its answers.
            dropped: turns that are in none.
        """
        answered = [k for k, unit in enumerate(units) if self.answers(unit)]
        before: tuple[tuple[int, Reason], ...] = tuple((i, "oldest") for i in dropped)
        n = _most(len(answered), lambda n: self.size_of(*self.until(answered[n - 1], always, units)) <= self.limit)
        if n:
            first, so_far = self.until(answered[n - 1], always, units)
            whole = tuple(sorted({*first, *(i for unit in so_far for i in unit)}))
            selection = Selection(whole, before, self.size_of(first, so_far))
            yield Window(selection, tuple(i for k in answered[:n] for i in self.answers(units[k])))
        room = self.room_of_answers(always) if n < len(answered) else 0
        while n < len(answered):
            first, so_far = self.until(answered[n], always, units)
            if (alone := self.size_of(first, so_far[-1:])) > self.limit:
                yield from self.parts(first, so_far, dropped, alone)
                n += 1
                continue
            rest = answered[n:]
            count = _most(len(rest), lambda m, rest=rest: self.size_of_group(rest[:m], always, units) <= room)
            group = rest[: max(1, count)]
            first, so_far = self.until(group[-1], always, units)
            selection = choose(self.all_turns, first, so_far, group, self.size, self.limit, self.by_answers)
            assert selection is not None, "the answers with their questions fit"
            answers = tuple(i for k in group for i in self.answers(units[k]))
            yield Window(replace(selection, dropped=(*before, *selection.dropped)), answers)
            n += len(group)

    def parts(self, always: Unit, units: Sequence[Unit], dropped: Unit, alone: int) -> Iterator[Window | TooLong]:
        """The rows of the last unit, which does not fit: the user's question, and of the steps as many as fit.

        Args:
            alone: its size.
        """
        question, parts = steps(self.all_turns, units[-1])
        if len(parts) > 1:
            earlier = (*dropped, *(i for unit in units[:-1] for i in unit))
            yield from self.windows(tuple(sorted((*always, *question))), parts, earlier)
        else:
            yield TooLong(tuple(self.answers(units[-1])), alone)

    def answers(self, unit: Unit) -> list[int]:
        return [i for i in unit if self.all_turns[i].is_target]

    def until(self, k: int, always: Unit, units: Sequence[Unit]) -> tuple[Unit, list[Unit]]:
        """What there is when the answers of unit k have been given: of `always`, and of the units."""
        end = self.answers(units[k])[-1] + 1
        return tuple(i for i in always if i < end), [tuple(i for i in unit if i < end) for unit in units[: k + 1]]

    def size_of(self, always: Unit, units: Sequence[Unit]) -> int:
        return self.size([self.all_turns[i] for i in sorted({*always, *(i for unit in units for i in unit)})])

    def size_of_group(self, group: Sequence[int], always: Unit, units: Sequence[Unit]) -> int:
        """Of the answers of some units with their questions alone."""
        first, so_far = self.until(group[-1], always, units)
        return self.size_of(first, [so_far[k] for k in group])

    def room_of_answers(self, always: Unit) -> int:
        first = [self.all_turns[i] for i in always]
        has_question = any(turn.role == "user" for turn in first)  # templates may refuse a second one
        fixed = self.size(first if has_question else [*first, *SHORTEST])
        return fixed + int(ANSWERS * max(0, self.limit - fixed))


def _most(count: int, holds: Callable[[int], bool]) -> int:
    """The largest n up to `count` for which `holds`, which holds up to some n and not beyond; 0: for none."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
