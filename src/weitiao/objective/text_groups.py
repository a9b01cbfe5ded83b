"""Rows that hold several texts, or pairs of texts, end to end: a query, its document and its negatives.

a row          what is snow? [SEP] ice crystals ... [SEP] a white horse [SEP]
text_index     0 ................. 1 .................... 2 ................

In the model each text is a segment of its own: none attends to another.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Row
from weitiao.core.example import Pair
from weitiao.core.objective import Preview, RowEncoder
from weitiao.core.plain_form import PlainForm, PlainTask
from weitiao.core.processor import Processor
from weitiao.objective.pooling import Pooling, TextRow, cut_texts, pooling_of, text_row
from weitiao.objective.preview import preview_lost

TEXT_INDEX = "text_index"  # the token target: which of the row's texts a token belongs to


class TextGroupRow(AnnotatedRow, total=False):
    """A row of several texts, as it is encoded."""

    texts: tuple[TextRow, ...]


class TextGroups(RowEncoder):
    """Encodes rows of several texts, for objectives that compare a row's texts with one another."""

    _preview_styles: ClassVar[tuple[tuple[str, str], ...]]
    """How each text is shown: its kind, and what is written before it; the last is for all further texts."""

    _plain_task: ClassVar[tuple[PlainTask, str]]
    """What other libraries call the task, and its head; "": none."""
    if TYPE_CHECKING:  # a setting of the objectives; a field here would come before theirs
        pooling: Pooling

    def plain_form(self, kind: str) -> PlainForm:
        """One vector for a text or a pair."""
        task, head = self._plain_task
        return PlainForm(task, head, (head,) if head else (), pooling=pooling_of(self.pooling, kind))

    def encode_input(self, example: Pair, processor: Processor) -> Row:
        """The text alone."""
        return group_texts([text_row(processor, example.text)])

    def num_positions(self, row: Row) -> int:
        """The longest text: each is a segment of its own."""
        return max(map(len, split_texts(row)))

    def num_targets(self, row: Row) -> int:
        """One per text."""
        return len(split_texts(row))

    def texts(self, batch: Batch) -> list[Row]:
        """Every text of a batch as a row of its own, row after row."""
        return [Row(input_ids=ids, labels=[IGNORE] * len(ids)) for group in texts_of(batch) for ids in group]

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """Each text keeps its beginning and its last token."""
        short: list[TextRow] = []
        lost: list[int] = []
        for text in row.get("texts", ()):
            if len(text["input_ids"]) > max_length:
                cut, tokens = cut_texts(text, max_length)
                short.append(cut)
                lost += tokens
            else:
                short.append(text)
        return TextGroupRow(**{**row, **group_texts(short)}), lost

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The texts, and how they belong together."""
        preview: Preview = []
        for i, ids in enumerate(split_texts(row)):
            kind, prefix = self._preview_styles[min(i, len(self._preview_styles) - 1)]
            preview.append((kind, prefix + processor.decode(ids, skip_special_tokens=False)))
        return [*preview, *preview_lost(lost, processor)]


def group_texts(texts: Sequence[TextRow]) -> TextGroupRow:
    """Encoded texts as one row."""
    return TextGroupRow(
        input_ids=[token for text in texts for token in text["input_ids"]],
        labels=[label for text in texts for label in text["labels"]],
        token_targets={TEXT_INDEX: [i for i, text in enumerate(texts) for _ in text["input_ids"]]},
        texts=tuple(texts),
    )


def split_texts(row: Row) -> list[list[int]]:
    """The token ids of each of a row's texts."""
    ids = row["input_ids"]
    index = np.asarray(row.get("token_targets", {})[TEXT_INDEX])
    bounds = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(ids)]
    return [[int(x) for x in ids[a:b]] for a, b in pairwise(bounds)]


def texts_of(batch: Batch) -> list[list[list[int]]]:
    """The token ids of every text, [rows][texts of the row]."""
    return [split_texts(row) for row in batch.rows]
