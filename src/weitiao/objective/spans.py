"""Spans of a context as answers: the best ones of each window, and the answer that follows from all windows.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 4.2 and 4.3; Rajpurkar et al. 2018, "Know What You Don't Know",
arXiv 1806.03822, sec. 5 (the threshold).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weitiao.core.errors import InvalidValue

N_BEST = 20  # spans that are considered, as in BERT's code (n_best_size)


@dataclass(frozen=True)
class RowSpans:
    """The predictions for one row (a window)."""

    spans: list[tuple[float, int, int]]
    """(score s_i + e_j, i, j) with i, j tokens of the whole context; the best first."""
    no_answer: float
    """The score of "no answer", s_0 + e_0."""


@dataclass(frozen=True)
class Answer:
    """The prediction for one question."""

    text: str
    """"": there is no answer."""
    start: int
    """In characters of the context, start <= ... < end; both 0 where there is no answer."""
    end: int
    probability: float
    """Softmax of the score among the best spans of all windows and "no answer"."""
    no_answer: float
    """Score of "no answer" minus that of the best span; above the threshold there is no answer."""
    best: str
    """The text of the best span, whether or not it is the answer."""

    def __str__(self) -> str:
        return self.text

    def as_record(self, with_no_answer: bool) -> dict[str, Any]:
        """What `weitiao predict` writes next to the answer."""
        record: dict[str, Any] = {}
        if self.text:
            record |= {"predicted_start": self.start, "predicted_end": self.end}
        record["probability"] = round(self.probability, 6)
        if with_no_answer and math.isfinite(self.no_answer):
            record["no_answer_score"] = round(self.no_answer, 6)
        return record


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The first and the last token that have a character of start ... end - 1.

    Raises:
        InvalidValue: no token has.
    """
    tokens = [t for t, (a, b) in enumerate(offsets) if a < end and b > start]
    if not tokens:
        raise InvalidValue("the answer has no token")
    return tokens[0], tokens[-1]


def best_spans(scores: Tensor, number: int, max_length: int) -> RowSpans:
    """The best spans of a row.

    Args:
        scores: start and end scores [1 + n, 2] of "no answer" and of n context tokens.
        number: of the row's first context token in the whole context.
        max_length: of a span, in tokens.
    """
    starts, ends, num = scores[1:, 0], scores[1:, 1], len(scores) - 1
    by_length = [  # row d: the spans of d + 1 tokens, by where they start
        F.pad(starts[: num - d] + ends[d:], (0, d), value=-math.inf) for d in range(min(max_length, num))
    ]
    top = torch.stack(by_length).flatten().topk(min(N_BEST, sum(num - d for d in range(len(by_length)))))
    spans = [
        (score, number + index % num, number + index % num + index // num)
        for score, index in zip(top.values.tolist(), top.indices.tolist())
    ]
    return RowSpans(spans, float(scores[0].sum()))


def merge_spans(
    rows: Sequence[RowSpans], context: str, offsets: Sequence[tuple[int, int]], threshold: float | None
) -> Answer:
    """The answer by all windows. "No answer" scores as in the window where it is least likely.

    Args:
        offsets: (start, end) of each token of the context, in characters.
        threshold: how far "no answer" must exceed the best span; None: there is always an answer.
    """
    scores: dict[tuple[int, int], float] = {}
    for row in rows:
        for score, i, j in row.spans:
            if context[offsets[i][0] : offsets[j][1]].strip():
                scores[i, j] = max(score, scores.get((i, j), -math.inf))
    best = sorted(scores, key=lambda span: -scores[span])[:N_BEST]
    if not best:
        return Answer("", 0, 0, probability=1.0, no_answer=math.inf, best="")
    no_answer = min(row.no_answer for row in rows)
    candidates = [scores[span] for span in best] + ([] if threshold is None else [no_answer])
    total = sum(math.exp(x - max(candidates)) for x in candidates)
    margin = no_answer - scores[best[0]]
    start, end = offsets[best[0][0]][0], offsets[best[0][1]][1]
    text = context[start:end]
    if threshold is not None and margin > threshold:
        probability = math.exp(no_answer - max(candidates)) / total
        return Answer("", 0, 0, probability=probability, no_answer=margin, best=text.strip())
    start += len(text) - len(text.lstrip())
    text = text.strip()
    probability = math.exp(scores[best[0]] - max(candidates)) / total
    return Answer(text, start, start + len(text), probability=probability, no_answer=margin, best=text)


def no_answer_threshold(predicted: Sequence[tuple[Answer, Sequence[tuple[int, str]]]]) -> float:
    """The threshold with the most exact answers.

    Args:
        predicted: each row's prediction, and its right answers (start, text); none: there is no answer.
    """
    rows = sorted(((x.no_answer, x.best, answers) for x, answers in predicted), key=lambda row: row[0])
    gains = [  # of answering with the span rather than with "no answer", row by row from the surest span on
        float(any(best == text for _, text in answers)) - float(not answers) for _, best, answers in rows
    ]
    sums, margins = [0.0, *accumulate(gains)], [margin for margin, *_ in rows if math.isfinite(margin)]
    edges = [0.0]
    if margins:
        edges = [margins[0] - 1.0, *((a + b) / 2 for a, b in pairwise(margins)), margins[-1] + 1.0]
    separating = [i for i in range(len(edges)) if not 0 < i < len(margins) or margins[i - 1] < margins[i]]
    return edges[max(separating, key=lambda i: sums[i])]
