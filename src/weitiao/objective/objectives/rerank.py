"""Rerank: how well a document answers a query, both read together (cross-encoder); for the few that a search has found.

Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv 1901.04085, sec. 2.2, the score; Gao, Dai and Callan 2021,
"Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline", arXiv 2101.08751, eq. 3, the loss:

    s_i  = w . pooled([CLS] query [SEP] document_i [SEP])
    loss = - log (exp s_0 / sum over i of exp s_i)           document_0 is the right one, the others the row's own negatives

A row holds its pairs end to end; the last token of each has a label, 0 for the right one. They are parted before the model
sees them, so no document sees another.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, Batch, Row, pack
from weitiao.core.errors import DataError
from weitiao.core.example import Pair
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import Pooling, TextRow, cut_end, parts, pooled, text_row

HEAD = "relevance"


class PairsRow(Row, total=False):
    """A row of several pairs, while it is made."""

    pairs: tuple[TextRow, ...]


class Rerank(HeadObjective):
    """Score how well a document answers a query; both are read together."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Pair,
        generative=False,
        repacks_segments=True,
        overlong="truncate",
        overlong_reason="of query and document, the longer one is cut first",
        metrics=("loss", "mrr"),
    )

    pooling: Pooling = "auto"
    """What stands for the pair: the mean of the hidden states, the first, or the last; auto: encoders mean, others last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On what is pooled, while training."""

    def fit(self, examples: Sequence[Pair]) -> "Rerank":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuses data without wrong documents."""
        if not any(x.negatives for x in examples):
            words = "no row has a wrong document (column negative or negatives), and there is nothing to tell apart"
            raise DataError(f"data: {words}. Take what a search finds wrongly; or objective: embedding, which needs none.")
        return self

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One number; a bias would move all scores alike."""
        head = nn.Linear(width, 1, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        return {HEAD: head}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: Pair, processor: Processor) -> list[Row]:
        """The query with each document, the right one first."""
        if not example.negatives:
            raise ValueError("the row has no wrong document to tell the right one from")
        documents = (example.other, *example.negatives)
        if len(set(documents)) < len(documents):
            raise ValueError("a document stands there twice, or is right and wrong at once")
        return [_end_to_end([text_row(processor, example.text, x) for x in documents])]

    def encode_input(self, example: Pair, processor: Processor) -> Row:
        if not example.other:
            raise ValueError("the row has no document; query and document are read together")
        return _end_to_end([text_row(processor, example.text, example.other)])

    def num_positions(self, row: Row) -> int:
        return max(len(part["input_ids"]) for part in parts(row))

    def cut(self, row: PairsRow, max_length: int) -> tuple[Row, list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of each pair the beginnings stay, and its last token."""
        cuts = [
            cut_end(pair, max_length) if len(pair["input_ids"]) > max_length else (pair, [])
            for pair in row.get("pairs", ())
        ]
        return _end_to_end([kept for kept, _ in cuts]), [x for _, lost in cuts for x in lost]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The right pair is learnt against the others."""
        found = [processor.decode([int(x) for x in part["input_ids"]], skip_special_tokens=False) for part in parts(row)]
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        return [("target", found[0]), *(("context", f" ≠ {x}") for x in found[1:]), *gone]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def scores(self, model: TrainableModel, batch: Batch) -> list[Tensor]:
        """[1 + K] fp32 of each row: the right document's score, and those of its K others."""
        each = [parts(row) for row in batch.rows]
        pairs = pack([part for some in each for part in some]).to(model.device)
        z = model.heads[HEAD](F.dropout(pooled(model, pairs, self.pooling), self.dropout, model.training))[:, 0]
        order = torch.tensor(pairs.row_ids, device=z.device).argsort()  # pack lays the longest first
        return list(z[order].split([len(some) for some in each]))

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        return torch.stack([torch.logsumexp(s, 0) - s[0] for s in self.scores(model, batch)])

    # -- what it says -------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[list[float]]:
        """Of each row, its documents' scores."""
        return [s.tolist() for s in self.scores(model, batch)]

    def to_record(self, said: list[float]) -> dict[str, Any]:
        """The score, which ranks the documents of one query; it is no probability."""
        return {"predicted": round(said[0], 6)}

    def answer(self, said: list[float]) -> str | None:
        return f"{said[0]:.3f}" + (f" against {max(said[1:]):.3f}" if said[1:] else "")

    def metric_pair(self, said: list[float], example: Pair) -> tuple[Any, Any]:
        """(the right document's rank among the row's own, how many they are); equally good ones count as before it."""
        return 1 + sum(x >= said[0] for x in said[1:]), len(said)


def _end_to_end(pairs: Sequence[Row]) -> PairsRow:
    """The last token of each gets its number as the label."""
    ids = [x for pair in pairs for x in pair["input_ids"]]
    labels = [x for i, pair in enumerate(pairs) for x in (*[IGNORE] * (len(pair["input_ids"]) - 1), i)]
    return PairsRow(input_ids=ids, labels=labels, pairs=tuple(pairs))  # pyright: ignore[reportArgumentType]
