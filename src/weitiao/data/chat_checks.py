"""Checks of conversations before training: what the chat template leaves out, the order of turns, the date it writes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import ROLES, Chat, SourcedExample, Turn
from weitiao.core.finding import Finding
from weitiao.core.messages import Message, joined
from weitiao.data.chat.messages import content_forms, plain
from weitiao.data.chat.turn_order import ODDITIES, turn_oddities
from weitiao.data.tokenization import ChatProcessor

MAX_CHATS = 1000  # that are rendered, spread evenly over the data


def check_chats(chats: Sequence[Chat], processor: ChatProcessor) -> Iterator[Finding]:
    """What can be seen of conversations without a model."""
    if not chats or processor.template is None:
        return
    yield _contents(chats, processor)
    yield _turn_order(chats)
    if processor.template.writes_date:
        message = Message(
            "the chat template writes the date: {date} in this run, also when it is resumed, evaluated or asked; "
            "elsewhere, the date of that day",
            date=processor.template.date,
        )
        yield Finding("template_date", "fine", message)


def common_system(examples: Sequence[SourcedExample], num_sources: int) -> str:
    """The system message that all conversations begin with; "" if they have none, or several.

    Args:
        num_sources: of the data; rows of later sources are replayed, and do not count.
    """
    own = [x.example for x in examples if x.source < num_sources]
    messages = {x.system if isinstance(x, Chat) else "" for x in own}
    return messages.pop() if len(messages) == 1 else ""


def _contents(chats: Sequence[Chat], processor: ChatProcessor) -> Finding:
    """Turns whose content is not in the rendered conversation, in order."""
    missing: Counter[str] = Counter()
    total = 0
    for chat in chats[:: -(-len(chats) // MAX_CHATS)]:
        try:
            conversation = processor.conversation(chat.turns, chat.tools)
            last = len(chat.prompt)
            text = plain(conversation.up_to(last)[0])
        except (InvalidValue, DataError):
            continue  # a bad row, and reported as one
        total += last + 1
        position = 0
        for turn in conversation.turns[: last + 1]:
            start = 0 if turn.role == "system" else position  # a template may write it anywhere
            ends = [i + len(x) for x in content_forms(_answer(turn)) if (i := text.find(x, start)) >= 0]
            if not ends:
                missing[turn.role] += 1
            elif turn.role != "system":
                position = min(ends)
    if not missing:
        return Finding("chat_content", "fine", Message("the chat template renders the content of all {n:,} turns", n=total))
    message = Message(
        "the content of {n:,} of {total:,} turns ({roles}) is not in the rendered rows: the chat template leaves it out",
        n=missing.total(),
        total=total,
        roles=", ".join(role for role in ROLES if missing[role]),
    )
    return Finding("chat_content", "warning", message)


def _answer(turn: Turn) -> str:
    """The content without thoughts, which templates take out of earlier turns."""
    return turn.content.rsplit("</think>", 1)[-1] if turn.role == "assistant" else turn.content


def _turn_order(chats: Sequence[Chat]) -> Finding:
    """Conversations in which user and assistant do not alternate."""
    counts = Counter(kind for chat in chats for kind in turn_oddities(chat.turns))
    if not counts:
        return Finding("turn_order", "fine", Message("user and assistant alternate in all conversations"))
    parts = [Message(ODDITIES[kind], n=n) for kind, n in counts.most_common()]
    if 2 * counts["assistant_first"] > len(chats) and 2 * counts["cut"] > len(chats):
        parts.append(Message("user and assistant look exchanged: which of them should be trained on?"))
    message = Message("of {total:,} conversations, {parts}", total=len(chats), parts=joined("; ", parts))
    return Finding("turn_order", "warning", message)
