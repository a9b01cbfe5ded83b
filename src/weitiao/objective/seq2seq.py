"""Sequence to sequence: read a text, write what is to be made of it, with a model of two halves (T5, BART, Marian).

Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks", arXiv 1409.3215, eq. 1; teacher forcing: each
token of the target is learnt behind the right ones before it, not behind what the model would have written:

    loss = - sum over the target's tokens of log p(y_t | source, y_<t)

    the 3rd of May 2024 </s>   <start> 2 0 2 4 - 0 5 - 0 3
              read                     learnt, and </s>

Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, sec. 7), of V words:

    (1 - e) (- log p(y_t)) + e mean over the V words of - log p
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from weitiao.core.batch import IGNORE, Batch, Loss, Row
from weitiao.core.example import Rewritten
from weitiao.core.objective import Objective
from weitiao.core.processor import Processor
from weitiao.core.tunable import TunableModel


class Seq2Seq(Objective):
    """Read a text and write what is to be made of it; for models with an encoder and a decoder."""

    eats: ClassVar[type] = Rewritten
    halves: ClassVar[bool] = True
    predicts: ClassVar[bool] = True
    distributes: ClassVar[bool] = True
    too_long: ClassVar[str] = "refuse"
    too_long_reason: ClassVar[str] = "a cut text may lose what the target says"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "exact_match", "rouge_l")
    also: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "perplexity")

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of each target that is spread evenly over all words."""
    beams: int = Field(default=1, ge=1)
    """Answers that are followed at once when it writes (beam search); 1 is greedy."""
    longest: int = Field(default=128, ge=1)
    """An answer has at most so many tokens."""

    def rows(self, example: Rewritten, processor: Processor) -> list[Row]:
        source, target = processor.text(example.text), processor.text(example.target)
        if target[-1] != processor.eos_id:
            target = [*target, processor.eos_id]
        begun = [processor.start_id if processor.start_id is not None else processor.eos_id, *target[:-1]]
        return [Row(input_ids=[*source, *begun], labels=[IGNORE] * len(source) + target)]

    def given(self, example: Rewritten, processor: Processor) -> Row:
        ids = processor.text(example.text)
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def reach(self, row: Row) -> int:
        """The longer half."""
        source = _source(row)
        return max(source, len(row["input_ids"]) - source)

    def cut(self, row: Row, context: int) -> tuple[Row, list[int]]:
        """The ends of both halves go; the source's last token, which ends every text, stays."""
        ids, labels, many = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]], _source(row)
        source = ids[:many] if many <= context else [*ids[: context - 1], ids[many - 1]]
        end = many + context
        lost = ids[context - 1 : many - 1] if many > context else []
        kept = Row(input_ids=source + ids[many:end], labels=[IGNORE] * len(source) + labels[many:end])
        return kept, [*lost, *ids[end:]]

    def pieces(self, row: Row, lost: Sequence[int], processor: Processor) -> list[tuple[str, str]]:
        many, target = _source(row), [int(x) for x in row["labels"] if x != IGNORE]
        gone = [("lost", processor.spelt(lost))] if lost else []
        source = processor.spelt([int(x) for x in row["input_ids"][:many]])
        return [("read", source), *gone, ("read", " → "), ("learnt", processor.spelt(target))]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float((batch.labels != IGNORE).sum())}

    def loss(self, model: TunableModel, batch: Batch) -> Loss:
        return Loss({self.name: self.each(model, batch).sum()})

    def each(self, model: TunableModel, batch: Batch) -> Tensor:
        """[N]: of every learnt token."""
        if not self.label_smoothing:
            return -model.logprobs(batch)
        chosen, targets = model.choices(batch), batch.labels[batch.labels != IGNORE]
        right = chosen.gather(1, targets[:, None])[:, 0]
        return -(1 - self.label_smoothing) * right - self.label_smoothing * chosen.mean(1)

    def log_probs(self, model: TunableModel, batch: Batch) -> Tensor:
        return model.choices(batch)

    def row_losses(self, model: TunableModel, batch: Batch) -> list[tuple[float, float]]:
        many = [int((batch.labels[a:b] != IGNORE).sum()) for a, b in zip(batch.bounds, batch.bounds[1:])]
        return [(float(x.sum()), float(len(x))) for x in self.each(model, batch).detach().split(many)]

    # -- what it writes -----------------------------------------------------------------------------------------------

    def predict(self, model: TunableModel, batch: Batch) -> list[str]:
        """What is written of each row's source."""
        sources = [list(row["input_ids"][: _source(row)]) for row in batch.rows]
        written = model.generate(sources, self.longest, together=TOGETHER // self.beams or 1, beams=self.beams)
        return [model.processor.words(ids).strip() for ids in written]


TOGETHER = 32  # texts that are written at once


def _source(row: Row) -> int:
    """How many tokens the encoder reads."""
    return next((t for t, x in enumerate(row["labels"]) if x != IGNORE), len(row["labels"]))
