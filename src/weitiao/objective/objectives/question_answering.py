"""Extractive question answering: the answer is a span of a given context, or the context does not contain it.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.2 (SQuAD 1.1) and 4.3 (SQuAD 2.0):

    s = S h_i,   e = E h_i                     of each token of the context, and of the token that means "no answer"
    loss of a row = - log softmax(s)_start - log softmax(e)_end                            a sum; counted: rows
    answer        = argmax over i <= j of s_i + e_j;   none if s_0 + e_0 > s_i + e_j + threshold

    encoder   [CLS] who painted it [SEP] it was painted by Goya in 1819 [SEP]
                0                         ----------------- S E ---------
    decoder         who painted it  \\n   it was painted by Goya in 1819 <end>     "no answer" is <end>, the only token
                                                                           0       that has attended to everything

The targets of a row:

    context    [3]   the position of its first context token, how many there are, the number of the first in the context
    answer     [2]   the first and the last token of the answer, counted from the row's first context token; -1: no answer

A long context is read in overlapping windows that each repeat the question (`doc_stride` in BERT's code). A window
without the whole answer has no answer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Row, take_tokens
from weitiao.core.errors import InvalidValue
from weitiao.core.example import ExtractiveQA
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.pooling import linear_head
from weitiao.objective.preview import preview_with_target
from weitiao.objective.spans import Answer, RowSpans, best_spans, merge_spans, no_answer_threshold, token_span

HEAD = "span"
CONTEXT, ANSWER = "context", "answer"  # the targets
NO_ANSWER = -1
MIN_CONTEXT = 16  # tokens of the context for which there must be room next to the question
WIDENED = Message("answers widened to whole tokens")


class QuestionAnswering(HeadObjective):
    """Find the span of a context that answers a question, or that there is no answer."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=ExtractiveQA,
        generative=False,
        overlong="sliding_window",
        overlong_reason=Message("the answer may be anywhere: overlapping windows each repeat the question"),
        metrics=("loss", "squad_em", "squad_f1"),
    )

    unanswerable: bool | Literal["auto"] = "auto"
    """There may be no answer (SQuAD 2.0); auto: if some training row has none. False: always answer with the best span."""
    threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["validation"] = "validation"
    """How far the score of "no answer" must exceed the best span's; validation: the value with the most exact answers on
    the validation rows, chosen after training (until then 0)."""
    max_answer_length: int = Field(default=30, ge=1)
    """Maximum tokens of an answer."""
    doc_stride: int = Field(default=128, ge=0)
    """Tokens that neighbouring windows share, at most half of a window."""

    def fit(self, examples: Sequence[ExtractiveQA]) -> "QuestionAnswering":
        """The objective that knows whether there may be no answer."""
        if self.unanswerable != "auto":
            return self
        return self.model_copy(update={"unanswerable": any(not x.answers for x in examples)})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """S and E; a bias would move all scores alike."""
        return {HEAD: linear_head(width, 2, bias=False)}

    def plain_form(self, kind: str) -> PlainForm:
        """Scores of starts and ends."""
        return PlainForm("question_answering", HEAD)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: ExtractiveQA, processor: Processor) -> list[Row]:
        """The question and the context. Of several right answers the first is the target, widened to whole tokens."""
        row = self.encode_input(example, processor)
        if not example.answers:
            if self.unanswerable is False:
                raise InvalidValue("the row has no answer; set unanswerable: true if that is possible")
            return [_with_answer(row, (NO_ANSWER, NO_ANSWER))]
        start, text = example.answers[0]
        offsets = processor.encode_with_offsets(example.context)[1]
        first, last = token_span(offsets, start, start + len(text))
        row = _with_answer(row, (first, last))
        if example.context[offsets[first][0] : offsets[last][1]].strip() != text.strip():
            row["notes"] = (WIDENED,)
        return [row]

    def encode_input(self, example: ExtractiveQA, processor: Processor) -> AnnotatedRow:
        frame = processor.special_tokens
        question, context = (processor.encode_with_offsets(text)[0] for text in (example.question, example.context))
        if not question:
            raise InvalidValue("the question has no token")
        if not context:
            raise InvalidValue("the context has no token")
        before = [*frame.first, *question, *frame.between]
        ids = [*before, *context, *frame.last]
        return AnnotatedRow(input_ids=ids, labels=[IGNORE] * len(ids), targets={CONTEXT: [len(before), len(context), 0]})

    def num_targets(self, row: Row) -> int:
        """The tokens that may start or end an answer, and "no answer"."""
        return int(_context(row)[1]) + 1

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Overlapping windows of the context, each behind the question; one without the whole answer has none."""
        (position, num_context, number), length = _context(row), len(row["input_ids"])
        size = max_length - (length - num_context)
        if size < min(MIN_CONTEXT, num_context):
            raise InvalidValue(
                "the question and special tokens take {num} tokens, so max_length {max_length} has no room for the context",
                num=length - num_context,
                max_length=max_length,
            )
        step = size - min(self.doc_stride, size // 2)
        windows: list[Row] = []
        for start in range(0, max(num_context - size, 0) + step, step):
            start = max(min(start, num_context - size), 0)
            end = min(start + size, num_context)
            tokens = [*range(position), *range(position + start, position + end), *range(position + num_context, length)]
            window = take_tokens(row, tokens)
            window["targets"] = {CONTEXT: [position, end - start, number + start]}
            if (answer := _answer(row)) is not None:
                inside = start <= answer[0] and answer[1] < end
                window = _with_answer(window, (answer[0] - start, answer[1] - start) if inside else (NO_ANSWER, NO_ANSWER))
            windows.append(window)
        return windows

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The first window; the rest of the context is lost, and perhaps the answer."""
        short = self.windows(row, max_length)[0]
        position, num_context, _ = _context(row)
        return short, [int(x) for x in row["input_ids"][position + _context(short)[1] : position + num_context]]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """Question and context, then the answer."""
        ids, position, answer = row["input_ids"], _context(row)[0], _answer(row)
        target = "no answer"
        if answer is not None and answer[0] != NO_ANSWER:
            span = [int(x) for x in ids[position + answer[0] : position + answer[1] + 1]]
            target = processor.decode(span, skip_special_tokens=False).strip()
        return preview_with_target(ids, lost, target, processor)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _span_scores(self, model: TrainableModel, batch: Batch) -> Iterator[Tensor]:
        """For each segment, the start and end scores [1 + n, 2] of "no answer" and of its n context tokens."""
        scores = model.heads[HEAD](model.hidden(batch).float())  # [T, 2]
        for a, b, (position, num_context, _) in zip(batch.bounds, batch.bounds[1:], batch.targets[CONTEXT].tolist()):
            no_answer = a if model.architecture.kind == "encoder" else b - 1
            tokens = [no_answer, *range(a + position, a + position + num_context)]
            yield scores[torch.tensor(tokens, device=scores.device)]

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        targets = batch.targets[ANSWER] + 1  # [B, 2]; 0 is "no answer"
        scores = self._span_scores(model, batch)
        return torch.stack([F.cross_entropy(x.T, target, reduction="sum") for x, target in zip(scores, targets)])

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[RowSpans]:
        """The best spans of each segment, and the score of "no answer"."""
        numbers = batch.targets[CONTEXT][:, 2].tolist()
        scores = self._span_scores(model, batch)
        return [best_spans(x, number, self.max_answer_length) for x, number in zip(scores, numbers)]

    def merge_windows(self, predictions: Sequence[RowSpans], example: ExtractiveQA, processor: Processor) -> Answer:
        """The best span over all windows, in characters of the context."""
        threshold = None if not self.unanswerable else 0.0 if self.threshold == "validation" else self.threshold
        return merge_spans(predictions, example.context, processor.encode_with_offsets(example.context)[1], threshold)

    def calibrate(
        self, predictions_of: Callable[[str], Sequence[tuple[Answer, ExtractiveQA]]]
    ) -> tuple["QuestionAnswering", list[Decision]]:
        """Where there may be no answer: the threshold with the most exact answers on the validation rows."""
        if not self.unanswerable or self.threshold != "validation":
            return self, []
        predicted = predictions_of("")
        if not predicted:
            return self, [Decision("objective.threshold", 0.0, Message("there are no validation rows to choose one on"))]
        threshold = no_answer_threshold([(x, example.answers) for x, example in predicted])
        reason = Message("the most exact answers on {num_rows} validation rows", num_rows=len(predicted))
        decision = Decision("objective.threshold", round(threshold, 4), reason)
        return self.model_copy(update={"threshold": threshold}), [decision]

    def to_record(self, prediction: Answer) -> dict[str, Any]:
        """The span in characters of the context, and how probable it is."""
        return prediction.as_record(with_no_answer=bool(self.unanswerable))

    def metric_pair(self, prediction: Answer, example: ExtractiveQA) -> tuple[Any, Any]:
        return prediction.text, tuple(text for _, text in example.answers)


def _context(row: Row) -> tuple[int, int, int]:
    """The row's context: position of its first token, number of tokens, number of the first in the whole context."""
    position, num_context, number = (int(x) for x in row.get("targets", {})[CONTEXT])
    return position, num_context, number


def _answer(row: Row) -> tuple[int, int] | None:
    """The answer's first and last token, counted from the row's first context token; None: the row has no target."""
    answer = row.get("targets", {}).get(ANSWER)
    return None if answer is None else (int(answer[0]), int(answer[1]))


def _with_answer(row: AnnotatedRow, answer: tuple[int, int]) -> AnnotatedRow:
    return AnnotatedRow(**{**row, "targets": {**row.get("targets", {}), ANSWER: list(answer)}})
