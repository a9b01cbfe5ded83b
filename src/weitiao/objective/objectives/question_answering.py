"""Extractive question answering: the answer is a stretch of a given text, or the text does not hold it.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.2 (SQuAD 1.1) and 4.3 (SQuAD 2.0):

    s = S h_i,   e = E h_i                     of each token of the text, and of the one that stands for "no answer"
    loss of a row = - log softmax(s)_begin - log softmax(e)_end                            a sum; counted: rows
    answer        = argmax over i <= j of s_i + e_j;   none if s_0 + e_0 > s_i + e_j + threshold

    encoder   [CLS] who painted it [SEP] it was painted by Goya in 1819 [SEP]
                0                         ----------------- B E ---------
    decoder         who painted it  \\n   it was painted by Goya in 1819 <end>     "no answer" is <end>, which alone
                                                                           0       has read everything

Every token that may be chosen has a label, all others IGNORE, so a row by itself says where its text stands:

    4 n + 1 [the answer begins here] + 2 [it ends here]     the n-th token of the text, n = 0, 1, 2 ...
    -1, or -2 where there is no answer                      the row's first and last token, of which a model uses one

A long text is read in windows that overlap and each repeat the question (sec. 4.2 of BERT's code: `doc_stride`). A window
that does not hold the whole answer is one without an answer. The numbers n lead back to the text.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Row
from weitiao.core.example import ExtractiveQA
from weitiao.core.finding import Decision
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

HEAD = "span"
BEGINS, ENDS, FLAGS = 1, 2, 4
ANSWERED, UNANSWERED = -1, -2
BEST = 20  # spans of a row that are kept, as in BERT's code (n_best_size)
LEAST = 16  # tokens of the text that must find room beside the question


class Spans(TypedDict):
    """What is said of one row."""

    best: list[tuple[float, int, int]]
    """(s_i + e_j, i, j), tokens of the text, the best first."""
    none: float
    """s_0 + e_0."""


class Found(TypedDict):
    """What is said of a question."""

    text: str
    """'': there is no answer."""
    start: int
    """Characters of the text, start <= ... < end; both 0 where there is no answer."""
    end: int
    probability: float
    """Its share among the best spans of all windows and "no answer": softmax of the scores."""
    no_answer: float
    """Score of "no answer" less the best span's; above the threshold, there is none."""
    best: str
    """What the best span says, be it the answer or not."""


class QuestionAnswering(HeadObjective):
    """Find the stretch of a text that answers a question, or say that there is none."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=ExtractiveQA,
        generative=False,
        overlong="sliding_window",
        overlong_reason="the answer may stand anywhere: windows that overlap each repeat the question",
        metrics=("loss", "squad_em", "squad_f1"),
    )

    unanswerable: bool | Literal["auto"] = "auto"
    """There may be no answer (SQuAD 2.0); auto: if some training row has none. False: the best span is always said."""
    threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["validation"] = "validation"
    """How much the score of "no answer" must be above the best span's; validation: what answers most validation rows
    exactly, chosen when all is learnt (until then 0)."""
    max_answer_length: int = Field(default=30, ge=1)
    """An answer has at most so many tokens."""
    doc_stride: int = Field(default=128, ge=0)
    """Tokens of the text that neighbouring windows share, at most half of what has room."""

    def fit(self, examples: Sequence[ExtractiveQA]) -> "QuestionAnswering":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective that knows whether there may be no answer."""
        if self.unanswerable != "auto":
            return self
        return self.model_copy(update={"unanswerable": any(not x.answers for x in examples)})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """S and E, small, so that no place is preferred at first; a bias would move all scores alike."""
        head = nn.Linear(width, 2, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        return {HEAD: head}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: ExtractiveQA, processor: Processor) -> list[Row]:
        """The question and the text; of several right answers the first is learnt, widened to whole tokens."""
        row = self.encode_input(example, processor)
        labels = list(row["labels"])
        if not example.answers:
            if self.unanswerable is False:
                raise ValueError("the row has no answer; write unanswerable: true if that may be")
            return [_without_answer(row)]
        begin, words = example.answers[0]
        places = processor.encode_with_offsets(example.context)[1]
        first, last = _tokens(places, begin, begin + len(words))
        at = labels.index(0)
        labels[at + first] |= BEGINS
        labels[at + last] |= ENDS
        widened = example.context[places[first][0] : places[last][1]].strip() != words.strip()
        return [
            AnnotatedRow(input_ids=row["input_ids"], labels=labels, notes=("answers widened to whole tokens",) * widened)
        ]

    def encode_input(self, example: ExtractiveQA, processor: Processor) -> Row:
        frame, asked, text = (
            processor.frame,
            processor.encode_with_offsets(example.question)[0],
            processor.encode_with_offsets(example.context)[0],
        )
        if not asked or not text:
            raise ValueError(f"the {'context' if asked else 'question'} has no token")
        before = [*frame.first, *asked, *frame.between]
        labels = [*(IGNORE for _ in before), *(FLAGS * n for n in range(len(text))), *(IGNORE for _ in frame.last)]
        labels[0] = labels[-1] = ANSWERED
        return Row(input_ids=[*before, *text, *frame.last], labels=labels)

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Parts of the text that overlap, each behind the question; one that does not hold the whole answer has none."""
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        text = [t for t, label in enumerate(labels) if label >= 0]
        first, last = text[0], text[-1] + 1
        room = max_length - (len(ids) - len(text))
        if room < min(LEAST, len(text)):
            words = f"the question and what stands around it take {len(ids) - len(text)} tokens"
            raise ValueError(f"{words}, so a max_length of {max_length} has no room for the text")
        step = room - min(self.doc_stride, room // 2)
        made = []
        for at in range(first, max(last - room, first) + step, step):
            at = max(min(at, last - room), first)
            some = slice(at, min(at + room, last))
            part = Row(
                input_ids=[*ids[:first], *ids[some], *ids[last:]], labels=[*labels[:first], *labels[some], *labels[last:]]
            )
            begin, end = _answer_of(labels[some])
            made.append(part if begin is not None and end is not None else _without_answer(part))
        return made

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The first window; the rest of the text is lost, and perhaps the answer."""
        kept = self.windows(row, max_length)[0]
        seen = sum(int(x) >= 0 for x in kept["labels"])
        return kept, [int(i) for i, label in zip(row["input_ids"], row["labels"]) if label >= FLAGS * seen]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """Question and text, and behind them the answer that is learnt."""
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        begin, end = _answer_of(labels)
        named = (
            "no answer"
            if begin is None or end is None
            else processor.decode(ids[begin : end + 1], skip_special_tokens=False).strip()
        )
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        return [("context", processor.decode(ids, skip_special_tokens=False)), *gone, ("target", f" → {named}")]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def asked(self, model: TrainableModel, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each segment: the scores [1 + n, 2] of "no answer" and of the text's n tokens, and their labels [1 + n]."""
        scores = model.heads[HEAD](model.hidden(batch).float())  # [T, 2]
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            none = a if model.architecture.kind == "encoder" else b - 1
            text = a + (batch.labels[a:b] >= 0).nonzero()[:, 0]
            chosen = torch.cat([text.new_tensor([none]), text])
            yield scores[chosen], batch.labels[chosen]

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        losses = []
        for scores, labels in self.asked(model, batch):
            held = [(labels >= 0) & (labels & flag > 0) for flag in (BEGINS, ENDS)]
            target = torch.stack([x.int().argmax() for x in held])  # 0, "no answer", where none is marked
            losses.append(F.cross_entropy(scores.T, target, reduction="sum"))
        return torch.stack(losses)

    # -- what is said -------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Spans]:
        """The best spans of each segment, and the score of "no answer"."""
        return [self._best(scores, labels) for scores, labels in self.asked(model, batch)]

    def _best(self, scores: Tensor, labels: Tensor) -> Spans:
        begins, ends, many = scores[1:, 0], scores[1:, 1], len(labels) - 1
        spans = [  # row d: the spans of d + 1 tokens, by where they begin
            F.pad(begins[: many - d] + ends[d:], (0, d), value=-math.inf) for d in range(min(self.max_answer_length, many))
        ]
        found = torch.stack(spans).flatten().topk(min(BEST, sum(many - d for d in range(len(spans)))))
        first = int(labels[1]) // FLAGS
        best = [
            (score, first + place % many, first + place % many + place // many)
            for score, place in zip(found.values.tolist(), found.indices.tolist())
        ]
        return {"best": best, "none": float(scores[0].sum())}

    def merge_windows(self, said: Sequence[Spans], example: ExtractiveQA, processor: Processor) -> Found:
        """The best span over all windows, in characters; "no answer" is as probable as in the window that has it least."""
        places, scores = processor.encode_with_offsets(example.context)[1], dict[tuple[int, int], float]()
        for spans in said:
            for score, i, j in spans["best"]:
                if example.context[places[i][0] : places[j][1]].strip():
                    scores[i, j] = max(score, scores.get((i, j), -math.inf))
        best = sorted(scores, key=lambda span: -scores[span])[:BEST]
        if not best:
            return Found(text="", start=0, end=0, probability=1.0, no_answer=math.inf, best="")
        none = min(spans["none"] for spans in said)
        every = [scores[span] for span in best] + ([none] if self.unanswerable else [])
        whole = sum(math.exp(x - max(every)) for x in every)
        more = none - scores[best[0]]
        start, end = places[best[0][0]][0], places[best[0][1]][1]
        words = example.context[start:end]
        if self.unanswerable and more > (0.0 if self.threshold == "validation" else self.threshold):
            none_said = math.exp(none - max(every)) / whole
            return Found(text="", start=0, end=0, probability=none_said, no_answer=more, best=words.strip())
        start += len(words) - len(words.lstrip())
        probability = math.exp(scores[best[0]] - max(every)) / whole
        words = words.strip()
        end = start + len(words)
        return Found(text=words, start=start, end=end, probability=probability, no_answer=more, best=words)

    def calibrate(
        self, ask: Callable[[str], Sequence[tuple[Found, ExtractiveQA]]]
    ) -> tuple["QuestionAnswering", list[Decision]]:
        """Where there may be no answer: the threshold that answers most validation rows exactly (Rajpurkar et al. 2018,
        "Know What You Don't Know", arXiv 1806.03822, sec. 5)."""
        if not self.unanswerable or self.threshold != "validation":
            return self, []
        rows = sorted(((said["no_answer"], said["best"], x) for said, x in ask("")), key=lambda row: row[0])
        if not rows:
            return self, [Decision("objective.threshold", 0.0, "no validation row to choose one on")]
        gains = [  # of saying the span, over saying "no answer", row by row from the surest span on
            (float(any(said == words for _, words in x.answers)) - float(not x.answers)) for _, said, x in rows
        ]
        sums, margins = [0.0, *accumulate(gains)], [x for x, *_ in rows if math.isfinite(x)]
        edges = [margins[0] - 1.0, *((a + b) / 2 for a, b in pairwise(margins)), margins[-1] + 1.0] if margins else [0.0]
        between = [i for i in range(len(edges)) if not 0 < i < len(margins) or margins[i - 1] < margins[i]]
        line = edges[max(between, key=lambda i: sums[i])]
        words = f"with it the most of {len(rows)} validation rows are answered exactly"
        return self.model_copy(update={"threshold": line}), [Decision("objective.threshold", f"{line:.4g}", words)]

    def to_record(self, said: Found) -> dict[str, Any]:
        """Where the answer stands, in characters of the context."""
        place = {"predicted_start": said["start"], "predicted_end": said["end"]} if said["text"] else {}
        known = self.unanswerable and math.isfinite(said["no_answer"])
        more = {"no_answer_score": round(said["no_answer"], 6)} if known else {}
        return {**place, "probability": round(said["probability"], 6), **more}

    def answer(self, said: Found) -> str:
        return said["text"]

    def metric_pair(self, said: Found, example: ExtractiveQA) -> tuple[Any, Any]:
        return said["text"], tuple(words for _, words in example.answers)


def _tokens(places: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The first and the last token that have a character of begin ... end - 1.

    Raises:
        ValueError: none has.
    """
    inside = [t for t, (a, b) in enumerate(places) if a < end and b > begin]
    if not inside:
        raise ValueError("the answer has no token")
    return inside[0], inside[-1]


def _answer_of(labels: Sequence[int]) -> tuple[int | None, int | None]:
    """Which positions hold the answer's first and last token."""
    begin, end = ([t for t, x in enumerate(labels) if x >= 0 and x & flag] for flag in (BEGINS, ENDS))
    return (begin[0] if begin else None), (end[0] if end else None)


def _without_answer(row: Row) -> Row:
    """The row without an answer."""
    labels = [x // FLAGS * FLAGS if x >= 0 else IGNORE for x in map(int, row["labels"])]
    labels[0] = labels[-1] = UNANSWERED
    return Row(input_ids=row["input_ids"], labels=labels)
