"""Sentence embeddings: texts that belong together get vectors that point the same way.

    v = pooled(hidden) / |pooled(hidden)|                                   [P, D]   P texts of a batch
    s(a, b) = v_a . v_b                                                     from -1 to 1

    in_batch   - log ( exp(s(q_i, d_i) / T) / sum over all d in the batch of exp(s(q_i, d) / T) )
               van den Oord et al. 2018 (InfoNCE), arXiv 1807.03748, eq. 4; in-batch: Henderson et al. 2017,
               arXiv 1705.00652, sec. 4.4. A row's own negatives are among the d; a d that is right for the same q in
               another row is no negative.
    triplet    max(0, margin - s(q, d) + s(q, n))     Schroff et al. 2015, arXiv 1503.03832, eq. 1, with cosines
               n: the row's negatives, or the d in the batch that is most alike (Hermans et al. 2017, 1703.07737, eq. 5)
    cosent     log ( 1 + sum over i, j with y_i > y_j of exp((s_j - s_i) / T) )     Su 2022, "CoSENT"
               y: how alike a pair is

    a row      what is snow? [SEP] ice crystals ... [SEP] a white horse [SEP]      query, document, negatives, end to end
    labels           -         0                -     1              -    2        each text's last token is labelled

In the model each text is a segment of its own: none sees another. Rows of one batch depend on each other, so a batch is
never split; `gradient_cache` lets it be large in little memory all the same.
"""

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, Batch, Loss, Row, pack
from weitiao.core.errors import DataError
from weitiao.core.example import Pair
from weitiao.core.objective import Objective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import parts, pooled

DIGITS = 6  # of a number that `weitiao predict` writes


class Embedding(Objective):
    """Learn vectors for texts, so that those that belong together lie close."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Pair,
        generative=False,
        batch_coupled=True,
        repacks_segments=True,
        overlong="truncate",
        overlong_reason="the beginning of a long text mostly says what it is about; its end is lost",
        metrics=("loss", "recall_at_10", "mrr"),
    )

    loss_type: Literal["in_batch_negatives", "triplet", "cosent"] = "in_batch_negatives"
    """in_batch: a query's document among all of the batch; triplet: nearer than what does not belong; cosent: pairs
    ranked by how alike they are."""
    temperature: float = Field(default=0.05, gt=0)
    """What cosines are divided by; smaller looks harder at the nearest wrong ones."""
    symmetric: bool = False
    """in_batch: the query among all queries is looked for too, and the two losses are averaged."""
    margin: float = Field(default=0.2, gt=0, le=2)
    """triplet: how much nearer the right one shall be, as a cosine."""
    pooling: Literal["auto", "mean", "first", "last"] = "auto"
    """What stands for the text: the mean of the hidden states, the first, or the last; auto: encoders mean, others last."""
    mini_batch_size: int = Field(default=0, ge=0)
    """Texts that are embedded at once, for batches too large for memory: the same gradient, embedding twice; 0: off."""

    @property
    def traits(self) -> Traits:
        """With its own step for small memory, and metrics that fit the loss."""
        step = "gradient_cache" if self.mini_batch_size else "accumulate"
        metrics = ("loss", "spearman") if self.loss_type == "cosent" else self.default_traits.metrics
        return replace(self.default_traits, step=step, metrics=metrics)

    def fit(self, examples: Sequence[Pair]) -> "Embedding":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuses data that the loss cannot use."""
        rated = sum(x.similarity is not None for x in examples)
        if self.loss_type == "cosent" and not rated:
            raise DataError(
                "data: loss_type: cosent ranks pairs by how alike they are, and no row says so (a column score)."
            )
        if self.loss_type != "cosent" and rated:
            words = (
                f"{rated} of {len(examples)} rows say how alike they are, which loss_type: {self.loss_type} does not read"
            )
            raise DataError(f"data: {words}. Write objective: {{name: embedding, loss_type: cosent}}.")
        return self

    def rows(self, example: Pair, processor: Processor) -> list[Row]:
        """Query, document and negatives end to end; the last token of each has a label. With cosent the document's is how
        alike the two are: the bits of a float32, none of whose numbers is IGNORE (that is a NaN's)."""
        if self.loss_type == "cosent":
            if example.similarity is None:
                raise ValueError("the row does not say how alike its texts are")
            marks = [0, struct.unpack("<i", struct.pack("<f", example.similarity))[0]]
        else:
            marks = list(range(2 + len(example.negatives)))
        ids: list[int] = []
        labels: list[int] = []
        for mark, text in zip(marks, (example.text, example.other, *example.negatives)):
            part = self._ids(text, processor)
            ids, labels = ids + part, labels + [IGNORE] * (len(part) - 1) + [mark]
        return [Row(input_ids=ids, labels=labels)]

    def encode_input(self, example: Pair, processor: Processor) -> Row:
        ids = self._ids(example.text, processor)
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def _ids(self, text: str, processor: Processor) -> list[int]:
        ids = processor.text(text)
        return ids if ids and ids[-1] == processor.eos_id else [*ids, processor.eos_id]

    def num_positions(self, row: Row) -> int:
        return max(len(part["input_ids"]) for part in parts(row))

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """Of each text the beginning stays, and the last token."""
        ids: list[int] = []
        labels: list[int] = []
        lost: list[int] = []
        for part in parts(row):
            mine, marks = [int(x) for x in part["input_ids"]], [int(x) for x in part["labels"]]
            ids += [*mine[: max_length - 1], mine[-1]] if len(mine) > max_length else mine
            labels += marks[-max_length:]
            lost += mine[max_length - 1 : -1]
        return Row(input_ids=ids, labels=labels), lost

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """Query and document are learnt together; negatives are read."""
        found = [processor.decode([int(x) for x in part["input_ids"]], skip_special_tokens=False) for part in parts(row)]
        kinds = ("context", "target", *("context" for _ in found[2:]))
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        return [
            *((kind, f" ↔ {x}" if i == 1 else f" ≠ {x}" if i else x) for i, (kind, x) in enumerate(zip(kinds, found))),
            *gone,
        ]

    # -- texts to vectors ---------------------------------------------------------------------------------------------

    def texts(self, batch: Batch) -> list[Row]:
        """Every text of a batch, row after row."""
        return [part for row in batch.rows for part in parts(row)]

    def embed(self, model: TrainableModel, texts: Sequence[Row]) -> Tensor:
        """[P, D] fp32, of length 1, in the order of the texts."""
        batch = pack(texts).to(model.device)
        order = torch.tensor(batch.row_ids, device=model.device).argsort()  # pack lays the longest first
        return F.normalize(pooled(model, batch, self.pooling), dim=-1)[order]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(len(batch.lengths))}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        texts = self.texts(batch)
        return self.compare(self.embed(model, texts), texts)

    def compare(self, vectors: Tensor, texts: Sequence[Row]) -> Loss:
        """The loss of texts that are embedded already: vectors [P, D]."""
        return Loss({self.name: self.row_losses(vectors, texts).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        texts = self.texts(batch)
        return [(x, 1.0) for x in self.row_losses(self.embed(model, texts), texts).tolist()]

    def row_losses(self, vectors: Tensor, texts: Sequence[Row]) -> Tensor:
        """[B]: what each row adds."""
        marks = [int(text["labels"][-1]) for text in texts]
        if self.loss_type == "cosent":
            return self._ranked(vectors[0::2], vectors[1::2], marks[1::2])
        words = [tuple(int(x) for x in text["input_ids"]) for text in texts]
        queries, own = ([i for i, mark in enumerate(marks) if mark == wanted] for wanted in (0, 1))
        candidates = [*own, *(i for i, mark in enumerate(marks) if mark > 1)]  # [C], the right ones first
        right: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for query, document in zip(queries, own):
            right.setdefault(words[query], set()).add(words[document])
        no_negative = torch.tensor([[words[j] in right[words[i]] for j in candidates] for i in queries])  # [B, C]
        no_negative.fill_diagonal_(False)
        scores = vectors[queries] @ vectors[candidates].T  # [B, C]
        scores = scores.masked_fill(no_negative.to(scores.device), -torch.inf)
        if self.loss_type == "triplet":
            of = np.searchsorted(queries, candidates, side="right") - 1  # whose each candidate is
            return self._nearer(scores, torch.from_numpy(of).to(scores.device))
        loss = self._found(scores)
        return (loss + self._found(scores[:, : len(own)].T)) / 2 if self.symmetric else loss

    def _found(self, scores: Tensor) -> Tensor:
        """[B, C], the right one on the diagonal -> [B]"""
        right = torch.arange(len(scores), device=scores.device)
        return F.cross_entropy(scores / self.temperature, right, reduction="none")

    def _nearer(self, scores: Tensor, of: Tensor) -> Tensor:
        """`of` [C]: whose each candidate is. A row's own negatives are averaged; without any, the nearest counts."""
        at = torch.arange(len(scores), device=scores.device)
        wrong = scores.clone()
        wrong[at, at] = -torch.inf
        mine = (of == at[:, None]) & wrong.isfinite()  # [B, C]
        average = wrong.masked_fill(~mine, 0.0).sum(1) / mine.sum(1).clamp(min=1)
        against = torch.where(mine.any(1), average, wrong.max(1).values)
        return F.relu(self.margin - scores.diagonal() + against)

    def _ranked(self, a: Tensor, b: Tensor, marks: Sequence[int]) -> Tensor:
        """The batch's one loss, for each of its rows: their mean is that loss."""
        s, y = (a * b).sum(-1) / self.temperature, torch.tensor(likenesses(marks), device=a.device)
        gaps = (s[None, :] - s[:, None])[y[:, None] > y[None, :]]  # s_j - s_i where y_i > y_j
        return torch.logsumexp(torch.cat([gaps, gaps.new_zeros(1)]), 0).expand(len(s))

    # -- what it says -------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Tensor]:
        """Of each row, its texts' vectors [P, D]."""
        texts = self.texts(batch)
        many = [len(parts(row)) for row in batch.rows]
        return list(self.embed(model, texts).cpu().split(many))

    def to_record(self, said: Tensor) -> dict[str, Any]:
        return {"embedding": [round(x, DIGITS) for x in said[0].tolist()]}

    def answer(self, said: Tensor) -> str | None:
        """How alike the two texts are; of one alone, nothing."""
        return f"cosine {float(said[0] @ said[1]):.3f}" if len(said) > 1 else None

    def metric_pairs(self, predicted: Sequence[tuple[Tensor, Pair]]) -> list[tuple[Any, Any]]:
        """(the rank of the right document, how many there are to choose from) of each pair; of cosent, the cosine and how
        alike they are. Texts that several rows share are one document; equally near ones count as before the right one."""
        if self.loss_type == "cosent":
            return [((float(said[0] @ said[1]),), (x.similarity,)) for said, x in predicted]
        documents = {text: v for said, x in predicted for text, v in zip((x.other, *x.negatives), said[1:])}
        number = {text: i for i, text in enumerate(documents)}
        right: dict[str, set[int]] = {}
        for _, x in predicted:
            right.setdefault(x.text, set()).add(number[x.other])
        corpus, found = torch.stack(list(documents.values())), []
        for said, x in predicted:
            scores, mine = corpus @ said[0], number[x.other]
            scores[list(right[x.text] - {mine})] = -torch.inf  # another right answer is no mistake
            found.append((int((scores >= scores[mine]).sum()), len(documents)))
        return found


def likenesses(marks: Sequence[int]) -> list[float]:
    """Labels back to the numbers whose bits they are."""
    return [struct.unpack("<f", struct.pack("<i", mark))[0] for mark in marks]
