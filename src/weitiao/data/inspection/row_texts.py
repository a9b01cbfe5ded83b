"""What inspection reads of an Example: what the model is given, what it learns, and its class."""

from dataclasses import dataclass

from weitiao.core.example import (
    Chat,
    Example,
    ExtractiveQA,
    Pair,
    SourceTarget,
    Task,
    Text,
    TextLabel,
    TextScore,
    TokenTags,
)
from weitiao.data.chat.turn_order import turn_oddities

ONE_TURN: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RowTexts:
    """One row."""

    prompt: str
    """What the model reads and is not trained on: the turns before the last answer without system messages, the text to
    classify ...; of plain text, all of it."""
    answer: str = ""
    """What it is trained to write; of a conversation, its last answer."""
    label: str = ""
    """What is learnt besides texts, as one string: classes, tags, numbers."""
    classes: tuple[str, ...] = ()
    """Of a text: its classes; of tags: the types of its entities."""
    more: str = ""
    """System messages and thoughts: looked through, not compared."""
    turns: int = 1
    """Turns of the user and the assistant, and results of tools."""
    oddities: frozenset[str] = ONE_TURN
    """Of a conversation: keys of turn_order.ODDITIES."""


def texts_of(example: Example) -> RowTexts:
    """The texts of an Example."""
    match example:
        case Chat():
            return _of_chat(example)
        case Task():
            return texts_of(example.example)
        case Text():
            return RowTexts(example.text)
        case TextLabel():
            return RowTexts(example.text, "", ", ".join(sorted(example.labels)), example.labels)
        case TokenTags():
            types = tuple(sorted({tag.partition("-")[2] or tag for tag in example.tags} - {"O"}))
            return RowTexts(example.text, "", " ".join(example.tags), types)
        case TextScore():
            return RowTexts(example.full_text, "", example.answer)
        case SourceTarget():
            return RowTexts(example.text, example.target)
        case Pair():
            label = "" if example.similarity is None else f"{example.similarity:g}"
            return RowTexts(example.text, "\n".join((example.other, *example.negatives)), label)
        case ExtractiveQA():
            return RowTexts(example.full_text, example.answer)


def _of_chat(chat: Chat) -> RowTexts:
    turns = chat.turns
    if len(turns) == 2 and turns[0].role == "user" and turns[1].is_target and not turns[1].tool_calls:
        return RowTexts(turns[0].content, turns[1].content, more=turns[1].reasoning, turns=2)
    before = chat.prompt
    more = [x.content for x in turns if x.role == "system"] + [x.reasoning for x in turns if x.reasoning]
    prompt = "\n".join(x.text for x in before if x.role != "system")
    is_odd = frozenset(turn_oddities(turns))
    count = sum(x.role != "system" for x in turns)
    return RowTexts(prompt, chat.answer, more="\n".join(more), turns=count, oddities=is_odd)
