"""Rerank: how well a document answers a query; both are read together (cross-encoder). For the top results of a search.

Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv 1901.04085, sec. 2.2, the score; Gao, Dai and Callan 2021,
"Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline", arXiv 2101.08751, eq. 3, the loss:

    s_i  = w . pooled([CLS] query [SEP] document_i [SEP])
    loss = - log (exp s_0 / sum over i of exp s_i)           document_0 is the right one, the others the row's negatives

A row holds its pairs end to end. In the model each pair is a segment of its own.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import Batch, Row, pack
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Pair
from weitiao.core.messages import Message
from weitiao.core.objective import HeadObjective
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import Pooling, linear_head, pooled, text_row
from weitiao.objective.text_groups import TextGroups, group_texts, texts_of

HEAD = "relevance"


class Rerank(TextGroups, HeadObjective):
    """Score how well a document answers a query; both are read together."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Pair,
        generative=False,
        repacks_segments=True,
        overlong="truncate",
        overlong_reason=Message("of query and document, the longer one is cut first"),
        metrics=("loss", "mrr"),
        optional_metrics=("recall_at_10", "ndcg_at_10", "map"),
    )
    _plain_task = ("pair_scores", HEAD)
    _preview_styles = (("target", ""), ("context", " ≠ "))

    pooling: Pooling = "auto"
    """The vector that represents the pair: mean of the hidden states, first or last; auto: mean for encoders, else last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the pooled vector, during training."""

    def fit(self, examples: Sequence[Pair]) -> "Rerank":
        """Refuses data that the loss cannot use."""
        num_scored = sum(x.similarity is not None and (not x.negatives or x.similarity == 0) for x in examples)
        if num_scored:
            raise DataError(
                "data: {num_scored} of {num_rows} rows have a score, or a label that says whether the document answers the "
                "query. objective: rerank reads one row per query, with its document and its wrong ones: "
                "{{query: ..., document: ..., negatives: [...]}}",
                num_scored=num_scored,
                num_rows=len(examples),
            )
        if not any(x.negatives for x in examples):
            raise DataError(
                "data: no row has a wrong document (column negative or negatives). Add wrong results of a search, or use "
                "objective: embedding, which needs none"
            )
        return self

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One score; a bias would move all scores alike."""
        return {HEAD: linear_head(width, 1, bias=False)}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: Pair, processor: Processor) -> list[Row]:
        """The query with each document, the right one first."""
        if not example.negatives:
            raise InvalidValue("the row has no wrong document")
        if example.similarity == 0:
            raise InvalidValue("the row's score is 0: its document does not answer the query")
        documents = (example.other, *example.negatives)
        if len(set(documents)) < len(documents):
            raise InvalidValue("the row names a document twice, or as right and wrong at once")
        return [group_texts([text_row(processor, example.text, x) for x in documents])]

    def encode_input(self, example: Pair, processor: Processor) -> Row:
        if not example.other:
            raise InvalidValue("the row has no document; query and document are read together")
        return group_texts([text_row(processor, example.text, example.other)])

    # -- loss ---------------------------------------------------------------------------------------------------------

    def scores(self, model: TrainableModel, batch: Batch) -> list[Tensor]:
        """[1 + K] fp32 for each row: the score of the right document, then those of its K negatives."""
        repacked = pack(self.texts(batch)).to(model.device)
        z = model.heads[HEAD](F.dropout(pooled(model, repacked, self.pooling), self.dropout, model.training))[:, 0]
        order = torch.tensor(repacked.row_ids, device=z.device).argsort()  # pack puts the longest first
        return list(z[order].split([len(group) for group in texts_of(batch)]))

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        return torch.stack([torch.logsumexp(s, 0) - s[0] for s in self.scores(model, batch)])

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[list[float]]:
        """The scores of each row's documents."""
        return [s.tolist() for s in self.scores(model, batch)]

    def to_record(self, prediction: list[float]) -> dict[str, Any]:
        """The score, which ranks the documents of one query; it is not a probability."""
        return {"predicted": round(prediction[0], 6)}

    def answer(self, prediction: list[float]) -> str | None:
        first, *others = prediction
        return f"{first:.3f}" + (f" vs {max(others):.3f}" if others else "")

    def metric_pair(self, prediction: list[float], example: Pair) -> tuple[Any, Any]:
        """(rank of the right document among the row's, number of documents); equal scores rank before it."""
        return 1 + sum(x >= prediction[0] for x in prediction[1:]), len(prediction)
