"""Examples -> encoded rows, a chunk of examples at a time, and what became of those that could not be used as they were."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, cast

from weitiao.core.batch import Row, take_tokens
from weitiao.core.errors import DataError, message_of
from weitiao.core.example import Chat, SourcedExample, Text, Turn
from weitiao.core.messages import Message
from weitiao.core.objective import RowEncoder
from weitiao.core.processor import Processor
from weitiao.data.chat.windows import TooLong
from weitiao.data.document_pieces import ELSEWHERE, INSIDE, NOTES, piece_starts
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.window_rows import WindowRow, chat_of, is_too_long, window_rows

TARGETS = ("targets", "token_targets")
LITERAL = Message("rows that spell special tokens, which are encoded as text")
PARSED = Message("rows that spell special tokens, which become control tokens (parse_special_tokens)")


@dataclass
class Facts:
    """What happened to the rows that could not be used as they were; all of it can be written as JSON."""

    bad: list[dict[str, Any]] = field(default_factory=list)
    truncated: int = 0
    dropped: int = 0
    split: int = 0
    trimmed: int = 0
    """Conversations that became several rows, or whose rows lack turns."""
    dropped_turns: list[dict[str, Any]] = field(default_factory=list)
    """A record for each row that lacks turns (data/window_rows.py)."""
    notes: dict[str, int] = field(default_factory=dict)
    """What objectives changed in rows (a message template), and in how many."""
    lost: dict[int, tuple[int | None, list[int]]] = field(default_factory=dict)
    """By source, the first row that lost tokens: its number (None: the row was dropped), and those token ids."""

    def note(self, message: Message, n: int = 1) -> None:
        self.notes[message.template] = self.notes.get(message.template, 0) + n

    def add(self, later: "Facts", num_rows: int) -> None:
        """Add those of the examples that follow.

        Args:
            num_rows: the rows before theirs.
        """
        self.bad += later.bad
        self.truncated, self.dropped = self.truncated + later.truncated, self.dropped + later.dropped
        self.split += later.split
        self.trimmed += later.trimmed
        self.dropped_turns += later.dropped_turns
        for template, n in later.notes.items():
            self.note(Message(template), n)
        for source, (row, ids) in later.lost.items():
            self.lost.setdefault(source, (None if row is None else row + num_rows, ids))


@dataclass(frozen=True)
class RowMaker:
    """How Examples become rows."""

    objective: RowEncoder
    processor: Processor
    max_length: int
    overlong: str
    held_out: bool = False
    """The rows are to be measured on: their context must not be chosen by their answers."""

    def rows(self, examples: Iterable[SourcedExample]) -> tuple[list[dict[str, Any]], Facts]:
        """The rows of some examples, as columns of the table, and what happened to the others.

        Raises:
            DataError: a row is too long and `overlong` is error.
        """
        rows, facts = list[dict[str, Any]](), Facts()
        for item in examples:
            try:
                if self.processor.contains_special_tokens(item.example.full_text):
                    facts.note(PARSED if item.parse_special_tokens else LITERAL)
                own = self.processor.parsing_special_tokens if item.parse_special_tokens else self.processor
                for piece in self._pieces(item, own, facts, len(rows)):
                    if num_targets := self.objective.num_targets(piece):
                        rows.append(_stored(piece, num_targets, item))
                    elif self.overlong not in ("split", "sliding_window"):
                        facts.bad.append(_bad(item, Message("no token of this row carries loss")))
            except ValueError as error:
                facts.bad.append(_bad(item, message_of(error)))
        return rows, facts

    def _pieces(self, item: SourcedExample, processor: Processor, facts: Facts, number: int) -> Iterator[Row]:
        """The rows of an example, none longer than `max_length`.

        Args:
            number: of the first among the rows of its chunk.
        """
        chat = chat_of(item) if self.overlong == "drop_turns" else None
        if chat is not None and is_too_long(chat, own := cast(ChatProcessor, processor), self.max_length):
            yield from self._windows(item, chat, own, facts, number)
            return
        rows = self.objective.rows(item.example, processor)
        if chat is not None and any(self.objective.num_positions(row) > self.max_length for row in rows):
            yield from self._windows(item, chat, cast(ChatProcessor, processor), facts, number)
            return
        for row in rows:
            for note in row.get("notes", ()):
                facts.note(note)
            for piece in self._fit(row, item, processor, facts, number):
                yield piece
                number += 1

    def _windows(
        self, item: SourcedExample, chat: Chat, processor: ChatProcessor, facts: Facts, number: int
    ) -> Iterator[Row]:
        """The rows of a conversation that is too long for one."""
        made_rows = window_rows(item, chat, self.objective, processor, self.max_length, self.held_out)
        whole = len(made_rows) == 1 and isinstance(made_rows[0], WindowRow) and not made_rows[0].record
        facts.trimmed += not whole
        for x in made_rows:
            if isinstance(x, TooLong):
                facts.bad.append(_bad(item, _too_long(x, self.max_length)))
                continue
            for note in x.row.get("notes", ()) if whole else ():
                facts.note(note)
            if x.record:
                facts.dropped_turns.append(x.record)
                if item.source not in facts.lost:
                    turns = [chat.turns[y["turn"]] for y in x.record["dropped"]]
                    facts.lost[item.source] = number, processor.encode_with_offsets(_as_text(turns))[0]
            yield x.row
            number += 1

    def _fit(self, row: Row, item: SourcedExample, processor: Processor, facts: Facts, number: int) -> Iterator[Row]:
        """The row, or what fits of it.

        Args:
            facts: counts what is lost.
            number: of the row among those of its chunk that are stored.
        """
        objective, max_length = self.objective, self.max_length
        by_objective = self.overlong in ("each", "drop_turns")  # what is no conversation has no turns to drop
        overlong = objective.overlong_of(row) if by_objective else self.overlong
        if (length := objective.num_positions(row)) <= max_length:
            yield row
            return
        ids = [int(x) for x in row["input_ids"]]
        if overlong == "error" and chat_of(item) is not None:
            raise DataError(
                "{where}: this conversation has {length} tokens, but max_length is {max_length}. Set overlong: drop_turns "
                "(it becomes several rows, without old exchanges), truncate (the end of the answer stays), drop or split; "
                "or a larger max_length",
                where=item.where,
                length=length,
                max_length=max_length,
            )
        elif overlong == "error":
            raise DataError(
                "{where}: this row has {length} tokens, but max_length is {max_length}. Set overlong: truncate (the end of "
                "the answer stays), drop or split; or a larger max_length",
                where=item.where,
                length=length,
                max_length=max_length,
            )
        elif overlong == "drop":
            facts.dropped += 1
            facts.lost.setdefault(item.source, (None, ids))
        elif overlong == "truncate":
            facts.truncated += 1
            short, lost = objective.cut(row, max_length)
            facts.lost.setdefault(item.source, (number, lost))
            yield short
        elif overlong == "sliding_window":
            facts.split += 1
            yield from objective.windows(row, max_length)
        else:
            facts.split += 1
            starts = [(start, INSIDE) for start in range(max_length, len(ids), max_length)]
            example = item.without_task.example
            if isinstance(example, Text):
                starts = piece_starts(example.text, ids, processor, max_length)
                for _, kind in starts:
                    facts.note(NOTES.get(kind, ELSEWHERE))
            edges = [0, *(start for start, _ in starts), len(ids)]
            for start, end in pairwise(edges):  # labels already hold the next token, so none is lost at a cut
                yield take_tokens(row, range(start, end))


def _stored(row: Row, num_targets: int, item: SourcedExample) -> dict[str, Any]:
    """A row as the columns of the table."""
    location = {"file": item.where.file, "line": item.where.line, "offset": item.where.offset}
    audio = {"audio": asdict(row["audio"])} if "audio" in row else {}
    targets = {f"{kind}.{name}": x for kind in TARGETS for name, x in row.get(kind, {}).items()}
    own = {key: row[key] for key in ("input_ids", "labels")}
    return {
        **own,
        "task": row.get("task"),
        "num_targets": num_targets,
        "source": item.source,
        **location,
        **audio,
        **targets,
    }


def _bad(item: SourcedExample, reason: Message) -> dict[str, Any]:
    where = {"file": item.where.file, "line": item.where.line, "offset": item.where.offset}
    return {"where": where, "reason": reason.as_json(), "excerpt": item.example.full_text[:200]}


def _too_long(x: TooLong, max_length: int) -> Message:
    return Message(
        "{n} answers fit into no row: with their question, the system message and the tools alone they have {size:,} "
        "tokens, and max_length is {max_length:,}",
        n=len(x.answers),
        size=x.size,
        max_length=max_length,
    )


def _as_text(turns: Sequence[Turn]) -> str:
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns)
