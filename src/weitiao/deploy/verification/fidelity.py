"""How closely one form of a model gives the outputs of another: teacher-forced on the answers of real rows.

    reference   log p(. | prompt, answer_<t)     [A, V]    the tuned model
    other       log q(. | prompt, answer_<t)     [A, V]    merged, quantized, exported, served ...
    agreement   share of positions where argmax p = argmax q        Wilson interval
    KL          mean over positions of sum_v p (log p - log q)      bootstrap over rows

Equal texts are no test of equality: one near-tie changes all that follows. So each position is measured after the same
tokens.

Rounding: p and q are normalized again in fp64, a few positions at a time, so that an error of the normalizer, which is
the same for all tokens of a position, does not hide differences of 1e-10 nats. Two tokens whose reference log-probabilities
differ by at most TIE are equally probable: which of them is first is chance.

Vocabularies: some forms pad theirs, or leave out the padding of the base. Tokens that only one of them has may hold hardly
any probability; otherwise the two are not the same model.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.score import Score, proportion, ratio_of_sums

CHUNK = 2**22  # numbers that are compared at once, in fp64
TIE = 1e-3  # nats: what the order of sums in fp32 may decide
PROBABLE = -9.21  # log 1e-4
MAX_LOST = 1e-4  # probability of tokens that only one of two vocabularies has
BATCH_TOKENS, BATCH_ANSWERS = 512, 256  # that are read at once: each answer token is a vector of V numbers


@dataclass(frozen=True)
class AnswerRow:
    """A prompt with the answer that is forced."""

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    """With the stop token."""

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt_ids, *self.answer_ids]


LogProbs = Callable[[Sequence[AnswerRow]], Sequence[Tensor]]
"""Rows -> log-probabilities [A, V] of each row's answer tokens. Of an encoder-decoder model, the prompt is the source and
the decoder's first token."""


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
    max_logit_difference: float = 0.0
    """Of log-probabilities, over all tokens: that of logits up to a shift of a whole position, which changes nothing."""
    ends: Score | None = None
    """Where the tuned model ends its answer, the form does too."""
    margins: tuple[float, float] | None = None
    """Where the most probable tokens differ, the nats by which the tuned model prefers its own: median, largest."""

    @property
    def message(self) -> Message:
        return Message(
            "{agreement:.2%} of the most probable tokens are the same [{low:.2%}, {high:.2%}], KL {kl:.1e} nats "
            "[{kl_low:.1e}, {kl_high:.1e}] (n = {positions:,} answer tokens of {rows:,} rows)",
            agreement=self.agreement.value,
            low=self.agreement.low,
            high=self.agreement.high,
            kl=self.kl.value,
            kl_low=self.kl.low,
            kl_high=self.kl.high,
            positions=self.positions,
            rows=self.rows,
        )


def compare(
    reference: LogProbs,
    other: LogProbs,
    rows: Sequence[AnswerRow],
    stop_ids: Collection[int] = (),
    track: Callable[..., Iterable[Any]] | None = None,
    observe: Callable[[Sequence[AnswerRow], Sequence[Tensor], Sequence[Tensor]], None] | None = None,
) -> Fidelity:
    """Measure `other` against `reference` on the answers of rows; each is read once.

    Args:
        rows: those without an answer are left out.
        stop_ids: tokens that end an answer.
        track: (batches, label) -> the batches, with a progress bar.
        observe: called with the rows of each batch and both models' log-probabilities.

    Raises:
        ModelError: there is no answer to compare, a probability is NaN, or the vocabularies are not those of one model.
    """
    tally, numbers = _Tally(torch.tensor(sorted(stop_ids), dtype=torch.long)), batches(rows)
    for batch in track(numbers, Message("comparing")) if track else numbers:
        chosen = [rows[i] for i in batch]
        p, q = reference(chosen), other(chosen)
        for i, row, x, y in zip(batch, chosen, p, q, strict=True):
            tally.add(i, _checked(x, len(row.answer_ids)), _checked(y, len(row.answer_ids)))
        if observe is not None:
            observe(chosen, p, q)
    return tally.fidelity()


def batches(rows: Sequence[AnswerRow]) -> list[list[int]]:
    """The numbers of rows that are read at once: of similar lengths, so that little is padding; none without an answer."""
    ordered = sorted((len(x.prompt_ids) + len(x.answer_ids), i) for i, x in enumerate(rows) if x.answer_ids)
    found: list[list[int]] = []
    answers = 0
    for length, i in ordered:
        count = len(rows[i].answer_ids)
        if not found or (len(found[-1]) + 1) * length > BATCH_TOKENS or answers + count > BATCH_ANSWERS:
            found, answers = [*found, []], 0
        found[-1].append(i)
        answers += count
    return found


@dataclass
class _Tally:
    """Sums over the positions that were compared."""

    stops: Tensor
    """Ids that end an answer."""
    same: int = 0
    ends: int = 0
    stopped: int = 0
    totals: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Row -> KL summed over its positions, their number."""
    largest: float = 0.0
    largest_of_all: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    """The first of each row."""
    margins: list[float] = field(default_factory=list)

    def add(self, row: int, p: Tensor, q: Tensor) -> None:
        """Compare one answer: log-probabilities [A, V] of both models."""
        total, found = 0.0, False
        size = max(1, CHUNK // max(p.shape[1], q.shape[1]))
        for at in range(0, len(p), size):
            a, b = common_vocabulary(p[at : at + size], q[at : at + size])
            expected, actual = a.argmax(-1), b.argmax(-1)
            margin = (a.gather(1, expected[:, None]) - a.gather(1, actual[:, None]))[:, 0]
            equal = margin <= TIE  # 0 where it is the same token
            self.margins += margin[~equal].tolist()
            if not found and not bool(equal.all()):
                t, found = int((~equal).nonzero()[0, 0]), True
                self.differences.append(Difference(row, at + t, int(expected[t]), int(actual[t])))
            self.same += int(equal.sum())
            difference = (a - b).abs().nan_to_num(nan=0.0)  # -inf in both: impossible in both
            total += float(torch.where(a > -torch.inf, a.exp() * (a - b), 0.0).sum())
            self.largest = max(self.largest, float(difference.where(a > PROBABLE, 0.0).max()))
            self.largest_of_all = max(self.largest_of_all, float(difference.max()))
            ending = torch.isin(expected, self.stops)
            self.ends += int(ending.sum())
            self.stopped += int((ending & torch.isin(actual, self.stops)).sum())
        self.totals[row] = max(0.0, total), len(p)

    def fidelity(self) -> Fidelity:
        """
        Raises:
            ModelError: there was no position.
        """
        in_order = [self.totals[i] for i in sorted(self.totals)]
        positions = sum(count for _, count in in_order)
        if not positions:
            raise ModelError("there is no answer to compare: no row has one.")
        return Fidelity(
            positions,
            len(in_order),
            proportion("agreement", self.same, positions),
            ratio_of_sums("kl", [total for total, _ in in_order], [count for _, count in in_order]),
            self.largest,
            min(self.differences, key=lambda x: x.row, default=None),
            self.largest_of_all,
            proportion("ends", self.stopped, self.ends) if self.ends else None,
            (median(self.margins), max(self.margins)) if self.margins else None,
        )


def mean_kl(reference: LogProbs, other: LogProbs, rows: Sequence[AnswerRow]) -> float:
    """Nats per answer token of rows by which `other` differs from `reference`."""
    return compare(reference, other, rows).kl.value


def _checked(log_probs: Tensor, length: int) -> Tensor:
    """[A, V], on the CPU.

    Raises:
        ModelError: a value is NaN or +inf, or there is not one row for each token of the answer.
    """
    if log_probs.ndim != 2 or len(log_probs) != length:
        raise ModelError(
            "log-probabilities of shape {shape} for an answer of {n} tokens: expected one row for each token.",
            shape=tuple(log_probs.shape),
            n=length,
        )
    log_probs = log_probs.detach().cpu()
    if bool(torch.isnan(log_probs).any()) or float(log_probs.max()) == math.inf:
        raise ModelError("the model gives NaN or infinite logits: do not use it.")
    return log_probs


def common_vocabulary(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Two log-distributions [N, V] over the tokens that both have, in fp64, each normalized.

    Raises:
        ModelError: a token that only one has is probable.
    """
    size = min(p.shape[1], q.shape[1])
    for x in (p, q):
        lost = float(x[:, size:].double().exp().sum(-1).max()) if x.shape[1] > size else 0.0
        if lost > MAX_LOST:
            raise ModelError(
                "the vocabularies differ: one has {more:,} tokens, the other {fewer:,}, and {lost:.1%} of the probability "
                "lies on tokens that only one has. These are not forms of one model.",
                more=max(p.shape[1], q.shape[1]),
                fewer=size,
                lost=lost,
            )
    return p[:, :size].double().log_softmax(-1), q[:, :size].double().log_softmax(-1)
