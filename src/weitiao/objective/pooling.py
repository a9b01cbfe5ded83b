"""A text, or two, as one row and one vector: what objectives with a score for the whole text share.

one text     [CLS] the mail says [SEP]                   two     [CLS] the mail says [SEP] the other says [SEP]
decoder      the mail says <end>                                 the mail says \\n the other says <end>

mean    the mean of all hidden states (encoders: Reimers & Gurevych 2019, arXiv 1908.10084, sec. 3)
first   the first (BERT's [CLS]: Devlin et al. 2019, arXiv 1810.04805, sec. 4.1)
last    the last, which alone has read everything (decoders: Radford et al. 2018, sec. 3.2)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel

Pooling = Literal["auto", "mean", "first", "last"]


class TextRow(Row, total=False):
    """A row of a text, or of two."""

    second: int
    """Where the second text begins, in tokens; missing: there is one."""


def text_row(processor: Processor, text: str, other: str = "") -> TextRow:
    """A text, or two, with the special tokens around them and nothing learnt; it ends with the end-of-text token."""
    if not other:
        ids = processor.text(text)
        if not ids or ids[-1] != processor.eos_id:
            ids = [*ids, processor.eos_id]
        return TextRow(input_ids=ids, labels=[IGNORE] * len(ids))
    frame = processor.frame
    begin = [*frame.first, *processor.encode_with_offsets(text)[0], *frame.between]
    ids = [*begin, *processor.encode_with_offsets(other)[0], *frame.last]
    return TextRow(input_ids=ids, labels=[IGNORE] * len(ids), second=len(begin))


def labelled_at_end(row: TextRow, held: Sequence[int]) -> TextRow:
    """The row with labels on its last tokens.

    Raises:
        ValueError: there are more labels than tokens.
    """
    many = len(row["input_ids"])
    if len(held) > many:
        raise ValueError(f"{len(held)} labels, but only {many} tokens")
    return TextRow(**{**row, "labels": [IGNORE] * (many - len(held)) + list(held)})


def cut_end(row: TextRow, context: int) -> tuple[Row, list[int]]:
    """(the row with its texts cut at their ends, the token ids that are lost). The last token, which ends every row, and
    the labels at the end stay. Of two texts the longer one is cut first."""
    ids = [int(x) for x in row["input_ids"]]
    over, second = len(ids) - context, row.get("second")
    texts = [range(len(ids) - 1)] if second is None else [range(second), range(second, len(ids) - 1)]
    many = [len(text) for text in texts]
    for _ in range(over):
        many[many.index(max(many))] -= 1
    kept = [i for text, some in zip(texts, many) for i in text[:some]] + [len(ids) - 1]
    lost = [i for text, some in zip(texts, many) for i in text[some:]]
    return Row(input_ids=[ids[i] for i in kept], labels=list(row["labels"])[-context:]), [ids[i] for i in lost]


def parts(row: Row) -> list[Row]:
    """A row's texts, or pairs: each ends where a label stands, and the last one at the end."""
    labels = list(row["labels"])
    ends = [i + 1 for i, label in enumerate(labels[:-1]) if label != IGNORE] + [len(labels)]
    return [Row(input_ids=row["input_ids"][a:b], labels=labels[a:b]) for a, b in zip([0, *ends], ends)]


def pooled(model: TrainableModel, batch: Batch, how: Pooling) -> Tensor:
    """[B, D] fp32: one vector a segment; auto: encoders mean, others last."""
    how = how if how != "auto" else ("mean" if model.architecture.kind == "encoder" else "last")
    bounds = torch.tensor(batch.bounds, device=model.device)
    if how == "mean":
        return torch.segment_reduce(model.hidden(batch).float(), "mean", offsets=bounds, axis=0)
    return model.hidden(batch, bounds[:-1] if how == "first" else bounds[1:] - 1).float()
