"""How closely one form of a model gives the outputs of another: teacher-forced on the answers of real rows.

    reference   log p(. | prompt, answer_<t)     [A, V]    the tuned model
    other       log q(. | prompt, answer_<t)     [A, V]    merged, quantized, exported, served ...
    agreement   share of positions where argmax p = argmax q        Wilson interval
    KL          mean over positions of sum_v p (log p - log q)      bootstrap over rows

Equal texts are no test of equality: one near-tie changes all that follows. So each position is measured after the same
tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weitiao.core.messages import Message
from weitiao.core.score import Score, proportion, ratio_of_sums

LogProbs = Callable[[Sequence[int], int], Tensor]
"""(ids of a prompt with its answer, where the answer starts) -> log-probabilities [A, V] fp32 of the answer's tokens."""


@dataclass(frozen=True)
class AnswerRow:
    """A prompt with the answer that is forced."""

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    """With the stop token."""


@dataclass(frozen=True)
class Difference:
    """A position at which the most probable tokens differ."""

    row: int
    position: int
    """In the answer, from 0."""
    expected: int
    actual: int


@dataclass(frozen=True)
class Fidelity:
    """How one form of a model compares with the tuned one."""

    positions: int
    rows: int
    agreement: Score
    """Of the most probable token, by position."""
    kl: Score
    """Nats per position."""
    max_difference: float
    """Of log-probabilities, over tokens with p >= 1e-4."""
    first_difference: Difference | None

    @property
    def message(self) -> Message:
        return Message(
            "{agreement:.2%} of the most probable tokens are the same [{low:.2%}, {high:.2%}], KL {kl:.1e} nats "
            "(n = {positions:,} answer tokens of {rows:,} rows)",
            agreement=self.agreement.value,
            low=self.agreement.low,
            high=self.agreement.high,
            kl=self.kl.value,
            positions=self.positions,
            rows=self.rows,
        )


def compare(reference: LogProbs, other: LogProbs, rows: Iterable[AnswerRow]) -> Fidelity:
    """Measure `other` against `reference` on the answers of rows."""
    same, sums, counts, largest, first = 0, [], [], 0.0, None
    for i, row in enumerate(rows):
        ids, start = [*row.prompt_ids, *row.answer_ids], len(row.prompt_ids)
        p, q = reference(ids, start), other(ids, start)
        expected, actual = p.argmax(-1), q.argmax(-1)
        if first is None and (at := (expected != actual).nonzero()[:1, 0].tolist()):
            first = Difference(i, at[0], int(expected[at[0]]), int(actual[at[0]]))
        same += int((expected == actual).sum())
        sums.append(float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)))
        counts.append(len(p))
        largest = max(largest, float((p - q).abs()[p > -9.21].max()))
    agreement = proportion("agreement", same, sum(counts))
    return Fidelity(sum(counts), len(counts), agreement, ratio_of_sums("kl", sums, counts), largest, first)
