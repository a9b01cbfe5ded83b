"""Sentence embeddings: related texts get vectors that point in the same direction.

    v = pooled(hidden) / |pooled(hidden)|                                   [P, D]   P texts of a batch
    s(a, b) = v_a . v_b                                                     from -1 to 1

    in_batch_negatives   - log ( exp(s(q_i, d_i) / T) / sum over all d in the batch of exp(s(q_i, d) / T) )
               van den Oord et al. 2018 (InfoNCE), arXiv 1807.03748, eq. 4; in-batch: Henderson et al. 2017,
               arXiv 1705.00652, sec. 4.4. A row's own negatives are among the d; a d that is right for the same q in
               another row is no negative.
               sampling_correction: s(q, d) / T - log n(d) in place of s(q, d) / T, with n(d) training rows that have d
               (Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", eq. 3)
    triplet    max(0, margin - s(q, d) + s(q, n))     Schroff et al. 2015, arXiv 1503.03832, eq. 1, with cosines
               n: the row's negatives, or the most similar d in the batch (Hermans et al. 2017, 1703.07737, eq. 5)
    cosent     log ( 1 + sum over i, j with y_i > y_j of exp((s_j - s_i) / T) )     Su 2022, "CoSENT"
               y: how similar a pair is

    a row      what is snow? [SEP] ice crystals ... [SEP] a white horse [SEP]      query, document, negatives
    text_index 0 ................. 1 .................... 2 ................

In the model each text is a segment of its own. The rows of a batch depend on each other, so a batch is never split;
`mini_batch_size` allows large batches in little memory nevertheless.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from weitiao.core.batch import AnnotatedRow, Batch, Loss, Row, pack
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Pair, content_hash
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.processor import Processor
from weitiao.core.ranking import Documents, ranks_of_queries, ranks_of_rows
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.contrastive import cosent_loss, in_batch_loss, similarities, triplet_loss
from weitiao.objective.pooling import Pooling, pooled, text_row
from weitiao.objective.text_groups import TextGroupRow, TextGroups, group_texts, texts_of

SIMILARITY = "similarity"  # the target of cosent: how similar the two texts are
LOG_COUNT = "log_count"  # the target of sampling_correction: log of the training rows that have the document
DIGITS = 6  # of a number that `weitiao predict` writes


class Embedding(TextGroups, Objective):
    """Train vectors for texts, so that related texts are close to each other."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Pair,
        generative=False,
        batch_coupled=True,
        repacks_segments=True,
        ranks_together=True,
        overlong="truncate",
        overlong_reason=Message("the beginning of a text usually says what it is about"),
        metrics=("loss", "recall_at_10", "mrr"),
        optional_metrics=("ndcg_at_10", "map"),
    )
    _plain_task = ("embedding", "")
    _preview_styles = (("context", ""), ("target", " ↔ "), ("context", " ≠ "))

    loss_type: Literal["in_batch_negatives", "triplet", "cosent"] = "in_batch_negatives"
    """in_batch_negatives: find a query's document among all of the batch; triplet: closer than a wrong one by a margin;
    cosent: rank pairs by their similarity scores."""
    temperature: float = Field(default=0.05, gt=0)
    """Cosines are divided by it; a smaller value puts more weight on the most similar negatives."""
    symmetric: bool = False
    """in_batch_negatives: also find a document's query among all queries, and average both losses."""
    sampling_correction: bool | dict[str, int] = False
    """in_batch_negatives: a frequent document is a negative more often and is pushed away for it; true: correct for that by
    each document's training rows (where the same documents come again and again, as in recommendation)."""
    margin: float = Field(default=0.2, gt=0, le=2)
    """triplet: by how much closer the right document must be, as a cosine."""
    pooling: Pooling = "auto"
    """The vector that represents the text: mean of the hidden states, first or last; auto: mean for encoders, else last."""
    mini_batch_size: int = Field(default=0, ge=0)
    """Texts embedded at once, for batches that do not fit into memory: the same gradient, each text embedded twice
    (GradCache); 0: off."""

    @property
    def traits(self) -> Traits:
        step = "gradient_cache" if self.mini_batch_size else "accumulate"
        if self.loss_type == "cosent":
            return replace(self.default_traits, step=step, metrics=("loss", "spearman"), optional_metrics=())
        return replace(self.default_traits, step=step)

    def fit(self, examples: Sequence[Pair]) -> "Embedding":
        """Refuses data that the loss cannot use."""
        num_scored = sum(x.similarity is not None for x in examples)
        if self.loss_type == "cosent" and not num_scored:
            raise DataError("data: loss_type: cosent ranks pairs by their similarity, but no row has one (column score)")
        if self.loss_type != "cosent" and num_scored:
            raise DataError(
                "data: {num_scored} of {num_rows} rows have a similarity score, or a label that says whether their texts "
                "belong together, which loss_type: {loss_type} does not use: it takes every pair as one that does. "
                "Set objective: {{name: embedding, loss_type: cosent}}, or keep only such pairs, without the column",
                num_scored=num_scored,
                num_rows=len(examples),
                loss_type=self.loss_type,
            )
        if not self.sampling_correction:
            return self
        if self.loss_type != "in_batch_negatives" or any(x.negatives for x in examples):
            raise DataError(
                "objective.sampling_correction is for loss_type: in_batch_negatives, and for rows without own negatives"
            )
        counts = Counter(_document_key(x.other) for x in examples)
        return self.model_copy(update={"sampling_correction": {key: n for key, n in counts.items() if n > 1} or False})

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: Pair, processor: Processor) -> list[Row]:
        """Query, document and negatives in one row; with cosent two texts, and how similar they are."""
        if not example.other:  # a document of a corpus
            return [self.encode_input(example, processor)]
        if self.loss_type != "cosent":
            if example.similarity is not None and example.similarity != 1:
                raise InvalidValue(
                    "the row's score is {score:g}, and loss_type: {loss_type} takes every pair as a match",
                    score=example.similarity,
                    loss_type=self.loss_type,
                )
            texts = (example.text, example.other, *example.negatives)
            row = group_texts([text_row(processor, text) for text in texts])
            if not isinstance(self.sampling_correction, dict):
                return [row]
            if example.negatives:
                raise InvalidValue("objective.sampling_correction: the row has negatives of its own")
            count = self.sampling_correction.get(_document_key(example.other), 1)
            return [TextGroupRow(**{**row, "targets": {LOG_COUNT: np.float32(np.log(count))}})]
        if example.similarity is None:
            raise InvalidValue("the row has no similarity score")
        row = group_texts([text_row(processor, text) for text in (example.text, example.other)])
        return [AnnotatedRow(**{**row, "targets": {SIMILARITY: np.float32(example.similarity)}})]

    # -- loss ---------------------------------------------------------------------------------------------------------

    def embed(self, model: TrainableModel, texts: Sequence[Row]) -> Tensor:
        """[P, D] fp32, of length 1, in the order of the texts."""
        batch = pack(texts).to(model.device)
        order = torch.tensor(batch.row_ids, device=model.device).argsort()  # pack puts the longest first
        return F.normalize(pooled(model, batch, self.pooling), dim=-1)[order]

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(len(batch.lengths))}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return self.compare(self.embed(model, self.texts(batch)), batch)

    def compare(self, vectors: Tensor, batch: Batch) -> Loss:
        """The loss of a batch whose texts are embedded already: vectors [P, D]."""
        return Loss({self.name: self._row_losses(vectors, batch).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        losses = self._row_losses(self.embed(model, self.texts(batch)), batch)
        return [(x, 1.0) for x in losses.tolist()]

    def _row_losses(self, vectors: Tensor, batch: Batch) -> Tensor:
        """[B]: what each row adds to the loss."""
        if self.loss_type == "cosent":
            cosines = (vectors[0::2] * vectors[1::2]).sum(-1)
            return cosent_loss(cosines, batch.targets[SIMILARITY], self.temperature)
        scores, owners = similarities(vectors, texts_of(batch))
        if self.loss_type == "triplet":
            return triplet_loss(scores, owners, self.margin)
        corrected = scores - self.temperature * batch.targets[LOG_COUNT] if LOG_COUNT in batch.targets else scores
        losses = in_batch_loss(corrected, self.temperature)
        if not self.symmetric:
            return losses
        return (losses + in_batch_loss(scores[:, : len(scores)].T, self.temperature)) / 2

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Tensor]:
        """The vectors [P, D] of each row's texts."""
        vectors = self.embed(model, self.texts(batch)).cpu()
        return list(vectors.split([len(group) for group in texts_of(batch)]))

    def to_record(self, prediction: Tensor) -> dict[str, Any]:
        return {"embedding": [round(x, DIGITS) for x in prediction[0].tolist()]}

    def answer(self, prediction: Tensor) -> str | None:
        """The cosine of the first two texts; None for a single text."""
        return f"cosine {float(prediction[0] @ prediction[1]):.3f}" if len(prediction) > 1 else None

    def metric_pairs(
        self,
        predicted: Sequence[tuple[Tensor, Pair]],
        by_query: bool = False,
        corpus: Sequence[tuple[Tensor, Pair]] = (),
    ) -> list[tuple[Any, Any]]:
        """(rank of the right document, number of documents) of each pair; with cosent, (cosine, similarity). Texts that
        several rows share are one document; equally similar ones rank before the right one."""
        if self.loss_type == "cosent":
            return [((float(v[0] @ v[1]),), (x.similarity,)) for v, x in predicted]
        pairs = [x for _, x in predicted]
        documents = Documents.of(pairs, [x.text for _, x in corpus])
        vector_of = {x.text: vectors[0] for vectors, x in corpus}
        vector_of |= {text: v for vectors, x in predicted for text, v in zip((x.other, *x.negatives), vectors[1:])}
        matrix = torch.stack([vector_of[text] for text in documents.number_of])  # [documents, D]
        ranks = ranks_of_queries if by_query else ranks_of_rows
        return ranks(pairs, documents, lambda row: (matrix @ predicted[row][0][0]).numpy())


def _document_key(text: str) -> str:
    """A short name of a document, to count it by."""
    return content_hash(text)[:12]
