"""What carries loss, drawn before step 1, in the terminal and in the report: one row a source.

learnt   green            read   dim            lost   red, struck out: cut off or dropped for its length
"""

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from weitiao.core.batch import IGNORE, Row
from weitiao.data.processor import ChatProcessor

STYLES = {"learnt": "bold green", "read": "dim", "lost": "red strike"}
LONGEST = 400  # characters of a drawn row


def pieces_of(row: Row | None, processor: ChatProcessor, lost: Sequence[int] = ()) -> list[tuple[str, str]]:
    """A row as stretches of text of one kind, its beginning left out where it is long.

    Token t + 1 is learnt where position t has a label; the last learnt token is not among the inputs and comes from
    its label.

    Args:
        row: None where all of it was dropped.
        lost: token ids that stood before it and were cut off.
    """
    tokens: list[tuple[str, int]] = [("lost", token) for token in lost]
    if row is not None:
        ids, labels = list(row["input_ids"]), list(row["labels"])
        tokens.append(("read", ids[0]))
        for label, token in zip(labels, [*ids[1:], IGNORE]):
            tokens.append(("learnt", label) if label != IGNORE else ("read", token))
    shown = [(kind, token) for kind, token in tokens if token != IGNORE]
    made = [
        (kind, processor.tokenizer.decode([int(token) for _, token in stretch]))
        for kind, stretch in groupby(shown, key=lambda x: x[0])
    ]
    return _newest(made)


def _newest(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The end of it, up to LONGEST characters; what was lost keeps half of that."""
    lost = [("lost", _ending(text, LONGEST // 2)) for kind, text in pieces if kind == "lost"]
    rest, room = [], LONGEST
    for kind, text in reversed([x for x in pieces if x[0] != "lost"]):
        if room > 0:
            rest.insert(0, (kind, _ending(text, room)))
        room -= len(text)
    return [*lost, *rest]


def _ending(text: str, room: int) -> str:
    return text if len(text) <= room else "… " + text[-room:]


def draw(pieces: Sequence[tuple[str, str]]) -> Text:
    """For the terminal."""
    return Text.assemble(*((text.replace("\n", "⏎\n"), STYLES[kind]) for kind, text in pieces))


def supervised_share(supervised: int, tokens: int) -> str:
    """'1,234 of 5,678 tokens carry loss (21.7 %)'."""
    return f"{supervised:,} of {tokens:,} tokens carry loss ({100 * supervised / max(tokens, 1):.1f} %)"
