"""A row as text, with the tokens that carry loss: drawn before training in the terminal, and in the report.

target   green            context   dim            lost   red, struck through: truncated or dropped for its length
"""

from collections.abc import Sequence

from rich.text import Text

from weitiao.core.batch import Row
from weitiao.core.objective import Preview, RowEncoder
from weitiao.core.processor import Processor

STYLES = {"target": "bold green", "context": "dim", "lost": "red strike"}
MAX_CHARACTERS = 400  # of a row


def preview(objective: RowEncoder, row: Row | None, processor: Processor, lost: Sequence[int] = ()) -> Preview:
    """The last characters of a row, by kind; lost tokens keep half as many.

    Args:
        row: None if the whole row was dropped.
        lost: ids of tokens that were removed.
    """
    if row is None:
        pieces = [("lost", processor.decode(lost, skip_special_tokens=False))]
    else:
        pieces = objective.preview(row, lost, processor)
    shortened: Preview = []
    remaining = MAX_CHARACTERS
    for kind, text in reversed(pieces):
        if kind == "lost":
            shortened.insert(0, (kind, _end_of(text, MAX_CHARACTERS // 2)))
            continue
        if remaining > 0:
            shortened.insert(0, (kind, _end_of(text, remaining)))
        remaining -= len(text)
    return shortened


def _end_of(text: str, length: int) -> str:
    return text if len(text) <= length else "… " + text[-length:]


def draw(pieces: Preview) -> Text:
    """A preview for the terminal."""
    return Text.assemble(*((text.replace("\n", "⏎\n"), STYLES[kind]) for kind, text in pieces))
