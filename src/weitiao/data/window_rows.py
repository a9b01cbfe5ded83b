"""`overlong: drop_turns` for training rows: a conversation that is too long as several rows, and what they lack."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from weitiao.core.batch import Row
from weitiao.core.example import Chat, SourcedExample, Task, Turn
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.objective import RowEncoder
from weitiao.core.run import Run
from weitiao.data.chat.drop_turns import Size, keep_last
from weitiao.data.chat.windows import TooLong, Window, windows
from weitiao.data.tokenization import ChatProcessor, num_tokens

FILE = "dropped_turns.jsonl"
EXCERPT = 80  # characters of a dropped turn


@dataclass(frozen=True)
class WindowRow:
    """A row of a conversation, and what became of its turns."""

    row: Row
    num_answers: int
    """Answers that are trained on in it; 0: in the next one of the same window."""
    record: dict[str, Any]
    """For dropped_turns.jsonl; empty where nothing was dropped."""


def chat_of(item: SourcedExample) -> Chat | None:
    """The conversation, if it is one."""
    example = item.without_task.example
    return example if isinstance(example, Chat) else None


def is_too_long(chat: Chat, processor: ChatProcessor, max_length: int) -> bool:
    """Whether a conversation must be measured as rows."""
    return num_tokens(processor, chat.turns[: len(chat.prompt) + 1], chat.tools) > max_length


def window_rows(
    item: SourcedExample,
    chat: Chat,
    objective: RowEncoder,
    processor: ChatProcessor,
    max_length: int,
    held_out: bool = False,
) -> list[WindowRow | TooLong]:
    """The rows of a conversation that is too long for one, none over `max_length`, and the answers that fit into none.

    Args:
        held_out: context is not chosen by the answers, which the model is to be measured on.

    Raises:
        InvalidValue: the objective cannot use the conversation.
    """

    def estimated(turns: Sequence[Turn]) -> int:
        return num_tokens(processor, turns, chat.tools)

    def exact(turns: Sequence[Turn]) -> int:
        if not any(turn.is_target for turn in turns):
            return estimated(turns)
        rows = objective.rows(_with_turns(item, chat, tuple(turns)), processor)
        return max(objective.num_positions(row) for row in rows)

    rows: list[WindowRow | TooLong] = []
    # exactly where an answer was given up (the last tokens of a text are no positions of its row), or where a template
    # leaves thoughts out of earlier turns, so that an earlier row may be longer
    for size in (estimated, exact):
        rows = list(_rows(item, chat, objective, processor, size, max_length, held_out))
        if all(isinstance(x, WindowRow) and objective.num_positions(x.row) <= max_length for x in rows):
            break
    return rows


def _rows(
    item: SourcedExample,
    chat: Chat,
    objective: RowEncoder,
    processor: ChatProcessor,
    size: Size,
    limit: int,
    held_out: bool,
) -> Iterator[WindowRow | TooLong]:
    for number, window in enumerate(windows(chat.turns, size, limit, not held_out), 1):
        if isinstance(window, TooLong):
            yield window
            continue
        record = _record(item, number, window, chat.turns)
        example = _with_turns(item, chat, window.turns(chat.turns))
        for i, row in enumerate(objective.rows(example, processor)):
            yield WindowRow(row, 0 if i else len(window.answers), {} if i else record)


def _with_turns(item: SourcedExample, chat: Chat, turns: tuple[Turn, ...]) -> Chat | Task:
    part = replace(chat, turns=turns)
    return Task(item.task, part) if isinstance(item.example, Task) else part


def _record(item: SourcedExample, number: int, window: Window, turns: tuple[Turn, ...]) -> dict[str, Any]:
    """What a user reads of a row: which answers are trained on, and every turn that is not in front of them."""
    if not window.selection.dropped:
        return {}
    dropped = [
        {"turn": i, "role": turns[i].role, "reason": reason, "text": turns[i].text[:EXCERPT]}
        for i, reason in sorted(window.selection.dropped)
    ]
    return {
        "file": item.where.file,
        "line": item.where.line,
        "row": number,
        "answers": list(window.answers),
        "tokens": window.selection.size,
        "dropped": dropped,
        "kept_for_answers": list(window.selection.for_answers),
    }


def as_asked(item: SourcedExample, processor: ChatProcessor, max_length: int) -> SourcedExample:
    """A conversation as the model is asked for its last answer: without the turns for which it is too long."""
    chat = chat_of(item)
    if chat is None or not is_too_long(chat, processor, max_length):
        return item
    turns = chat.turns[: len(chat.prompt) + 1]
    selection = keep_last(turns, lambda subset: num_tokens(processor, subset, chat.tools), max_length)
    if selection is None:
        return item
    return replace(item, example=_with_turns(item, chat, tuple(turns[i] for i in selection.turns)))


# -- what is reported -------------------------------------------------------------------------------------------------


def write_dropped_turns(run: Run, records: Sequence[dict[str, Any]]) -> None:
    """Add to dropped_turns.jsonl: for each row that lacks turns, which, why, and how they begin."""
    if records:
        old = run.read(FILE)
        run.write(FILE, old + [x for x in records if x not in old])


class Trimmed(Protocol):
    """What this file needs of `data.encode.Encoded`."""

    trimmed: int
    dropped_turns: list[dict[str, Any]]


def dropped_turns_decision(encoded: Trimmed, max_length: int, run: Run) -> Decision:
    """How many turns are left out of rows, by reason."""
    records = encoded.dropped_turns
    reasons = Counter(x["reason"] for record in records for x in record["dropped"])
    reason = Message(
        "{n:,} conversations are longer than {max_length:,} tokens: each of their answers is trained on once, and {rows:,} "
        "rows lack turns before it: fillers {filler:,}, the oldest {oldest:,}, those that share least {overlap:,}; in "
        "{led:,} rows turns are kept only for what the answers say, which is not known when the model is used ({file})",
        n=encoded.trimmed,
        max_length=max_length,
        rows=len(records),
        filler=reasons["filler"],
        oldest=reasons["oldest"],
        overlap=reasons["overlap"],
        led=sum(bool(x["kept_for_answers"]) for x in records),
        file=f"{run.folder}/{FILE}",
    )
    return Decision("data.dropped_turns", reasons.total(), reason)
