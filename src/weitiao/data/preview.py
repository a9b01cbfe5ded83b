"""What carries loss, drawn before step 1, in the terminal and in the report: one row a source.

target   green            context   dim            lost   red, struck out: cut off or dropped for its length
"""

from collections.abc import Sequence

from rich.text import Text

from weitiao.core.batch import Row
from weitiao.core.objective import Preview, RowEncoder
from weitiao.core.processor import Processor

STYLES = {"target": "bold green", "context": "dim", "lost": "red strike"}
LONGEST = 400  # characters of a drawn row


def pieces_of(objective: RowEncoder, row: Row | None, processor: Processor, lost: Sequence[int] = ()) -> Preview:
    """A row as its objective draws it, its beginning left out where it is long; what was lost keeps half of that.

    Args:
        row: None where all of it was dropped.
        lost: token ids that were cut off.
    """
    every = (
        [("lost", processor.decode(lost, skip_special_tokens=False))]
        if row is None
        else objective.preview(row, lost, processor)
    )
    made, room = [], LONGEST
    for kind, text in reversed(every):
        if kind == "lost":
            made.insert(0, (kind, _ending(text, LONGEST // 2)))
            continue
        if room > 0:
            made.insert(0, (kind, _ending(text, room)))
        room -= len(text)
    return made


def _ending(text: str, room: int) -> str:
    return text if len(text) <= room else "… " + text[-room:]


def draw(pieces: Sequence[tuple[str, str]]) -> Text:
    """For the terminal."""
    return Text.assemble(*((text.replace("\n", "⏎\n"), STYLES[kind]) for kind, text in pieces))


def supervised_share(supervised: int, tokens: int) -> str:
    """'1,234 of 5,678 tokens carry loss (21.7 %)'."""
    return f"{supervised:,} of {tokens:,} tokens carry loss ({100 * supervised / max(tokens, 1):.1f} %)"
