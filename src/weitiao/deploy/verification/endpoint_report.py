"""Compare a model behind an OpenAI-compatible server with the Run.

A server tells the k most probable tokens only, so the KL is that of a coarser distribution, those k tokens and the rest
together: a lower bound of the KL over the vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.score import Score, proportion, ratio_of_sums
from weitiao.deploy.verification.endpoint import TOP, Endpoint, Refused, TokenLogProb
from weitiao.deploy.verification.fidelity import TIE, AnswerRow
from weitiao.deploy.verification.report import (
    Bar,
    agreement_line,
    kl_line,
    missed_change,
    missed_figures,
    refuse_failures,
)
from weitiao.deploy.verification.verify import Subject

BAR = Bar(0.97, 1e-2)  # whatever a server computes in: bf16, or 8 bits
POSITIONS = 200  # answer tokens: each may be a request
CONVERSATIONS = 20
BROKEN = "\ufffd"  # what a part of a character is decoded to
STOPS, MAX_STOP_TOKENS = 5, 32  # answers that are generated to their end, and their length


@dataclass
class EndpointReport:
    """How a served model compares with the Run."""

    url: str
    model: str
    agreement: Score
    """Of the most probable token."""
    kl: Score
    """A lower bound: over the most probable tokens and the rest."""
    max_difference: float
    """Of log-probabilities that both name."""
    applied: float | None
    """The share of what training changed; None: the base is not at hand."""
    prompts: tuple[int, int] = (0, 0)
    """Conversations whose prompt has as many tokens as in training, of how many."""
    stopped: tuple[int, int] = (0, 0)
    """Answers that ended with a stop token, of how many that do in training."""
    failures: list[Message] = field(default_factory=list)

    @property
    def lines(self) -> list[Message]:
        """The report, a sentence a line."""
        lines = [
            agreement_line(self.agreement, BAR),
            kl_line(self.kl, BAR),
            Message(
                "over the {top} most probable tokens, so the KL is at least that; a log-probability differs by at most "
                "{difference:.1e}",
                top=TOP,
                difference=self.max_difference,
            ),
        ]
        if self.applied is not None:
            lines.append(Message("it has {applied:.0%} of what training changed", applied=self.applied))
        if self.prompts[1]:
            lines.append(
                Message("prompts of the same number of tokens: {n} of {total}", n=self.prompts[0], total=self.prompts[1])
            )
        if self.stopped[1]:
            lines.append(Message("answers that stop: {n} of {total}", n=self.stopped[0], total=self.stopped[1]))
        return lines

    def check(self) -> None:
        """Refuse a server that missed a bar.

        Raises:
            ModelError: naming each figure that was missed.
        """
        refuse_failures(f"{self.url} ({self.model})", self.failures)

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "model": self.model,
            "passed": not self.failures,
            "failures": [str(x) for x in self.failures],
            "agreement": self.agreement.as_json(),
            "kl": self.kl.as_json(),
            "max_difference": self.max_difference,
            "applied": self.applied,
            "prompts": {"equal": self.prompts[0], "total": self.prompts[1]},
            "stopped": {"stopped": self.stopped[0], "total": self.stopped[1]},
        }


@dataclass
class Tally:
    """Sums over the positions that were compared."""

    same: int = 0
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    largest: float = 0.0
    along: float = 0.0
    norm: float = 0.0

    @property
    def positions(self) -> int:
        return sum(self.counts)

    def add_row(self, subject: Subject, p: Tensor, positions: Sequence[Sequence[TokenLogProb]]) -> None:
        """Compare one answer: log-probabilities [A, V] of the tuned model, the server's most probable tokens."""
        measured = [compare_position(subject, p[t], x) for t, x in enumerate(positions) if x and is_named(subject, p[t], x)]
        self.same += sum(x.same for x in measured)
        self.sums.append(sum(x.kl for x in measured))
        self.counts.append(len(measured))
        self.largest = max([self.largest, *(x.difference for x in measured)])

    def add_change(self, subject: Subject, p: Tensor, base: Tensor, positions: Sequence[Sequence[TokenLogProb]]) -> None:
        """How far the server's log-probabilities went from the base's towards the tuned model's."""
        for t, x in ((t, x) for t, top in enumerate(positions) for x in top):
            token = token_id(subject, p[t], x.token)
            if token is not None:
                d, e, weight = float(p[t, token] - base[t, token]), x.logprob - float(base[t, token]), math.exp(x.logprob)
                self.along, self.norm = self.along + weight * d * e, self.norm + weight * d * d


def compare_endpoint(subject: Subject, endpoint: Endpoint, track: Any) -> EndpointReport:
    """Compare a served model with the tuned one, on the first answers.

    Raises:
        ModelError: the server does not take token ids, or gives no log-probabilities.
    """
    tally = Tally()
    reproduced: list[AnswerRow] = []
    for row in track(subject.rows, Message("comparing")):
        if tally.positions >= POSITIONS:
            break
        p = subject.log_probs([row])[0]
        try:
            positions = endpoint.most_probable(row.ids, len(row.prompt_ids))
        except Refused as error:
            raise ModelError(
                "{url} does not take token ids, or gives no log-probabilities: {reason}",
                url=endpoint.url,
                reason=str(error),
            ) from None
        tally.add_row(subject, p, positions)
        if subject.base is not None:
            tally.add_change(subject, p, subject.base([row])[0], positions)
        is_short = len(p) <= MAX_STOP_TOKENS and row.answer_ids[-1] in subject.stop_ids
        if is_short and p.argmax(-1).tolist() == list(row.answer_ids):
            reproduced.append(row)
    if not tally.positions:
        raise ModelError("{url} gives no log-probabilities, so nothing can be compared.", url=endpoint.url)
    agreement, kl = proportion("agreement", tally.same, tally.positions), ratio_of_sums("kl", tally.sums, tally.counts)
    applied = tally.along / tally.norm if tally.norm else None
    report = EndpointReport(endpoint.url, endpoint.model, agreement, kl, tally.largest, applied)
    report.prompts = count_prompts(subject, endpoint)
    report.stopped = count_stops(endpoint, reproduced[:STOPS])
    report.failures = failures_of_endpoint(report)
    return report


@dataclass(frozen=True)
class ComparedPosition:
    """One position compared."""

    same: bool
    kl: float
    difference: float


def token_id(subject: Subject, p: Tensor, token: int | str) -> int | None:
    """The id of a token that a server names by its text: that of the most probable ones with this text.

    None: there is none, or it is a part of a character, whose text is that of many tokens.
    """
    if isinstance(token, int):
        return token if 0 <= token < len(p) else None
    if BROKEN in token:
        return None
    return next((x for x in p.topk(min(50, len(p))).indices.tolist() if subject.decode([x]) == token), None)


def is_named(subject: Subject, p: Tensor, tokens: Sequence[TokenLogProb]) -> bool:
    """Whether the server can name the most probable token: by texts, parts of characters all have the same name."""
    return isinstance(tokens[0].token, int) or BROKEN not in subject.decode([int(p.argmax())])


def compare_position(subject: Subject, p: Tensor, tokens: Sequence[TokenLogProb]) -> ComparedPosition:
    """One position: log-probabilities [V] of the tuned model, the most probable tokens of the server."""
    named = [(token_id(subject, p, x.token), x.logprob) for x in tokens]
    pairs = {token: q for token, q in named if token is not None}
    best = int(p.argmax())
    first = tokens[0].token
    is_same = named[0][0] == best or (isinstance(first, str) and subject.decode([best]) == first)
    is_tie = named[0][0] is not None and float(p[best] - p[named[0][0]]) <= TIE
    rest_p, rest_q = (1 - sum(map(math.exp, x)) for x in ([float(p[t]) for t in pairs], pairs.values()))
    kl = sum(math.exp(float(p[t])) * (float(p[t]) - q) for t, q in pairs.items())
    kl += rest_p * math.log(max(rest_p, 1e-12) / max(rest_q, 1e-12)) if rest_p > 1e-6 else 0.0
    difference = max((abs(float(p[t]) - q) for t, q in pairs.items() if float(p[t]) > -9.21), default=0.0)
    return ComparedPosition(is_same or is_tie, max(0.0, kl), difference)


def count_prompts(subject: Subject, endpoint: Endpoint) -> tuple[int, int]:
    """(conversations whose prompt has as many tokens there as in training, how many were tried)."""
    equal = total = 0
    for x in subject.conversations[:CONVERSATIONS]:
        body = {"model": endpoint.model, "messages": list(x.messages), "max_tokens": 1, "temperature": 0}
        try:
            usage = endpoint.call("/v1/chat/completions", body | ({"tools": list(x.tools)} if x.tools else {})).get("usage")
        except Refused:
            return 0, 0
        if isinstance(usage, Mapping) and isinstance(usage.get("prompt_tokens"), int):
            total += 1
            equal += usage["prompt_tokens"] == len(x.ids)
    return equal, total


def count_stops(endpoint: Endpoint, rows: Sequence[AnswerRow]) -> tuple[int, int]:
    """(answers that ended by themselves, how many were generated)."""
    ended = [endpoint.complete(x.prompt_ids, max_tokens=len(x.answer_ids) + 16).get("finish_reason") for x in rows]
    return sum(x == "stop" for x in ended), len(ended)


def failures_of_endpoint(report: EndpointReport) -> list[Message]:
    """What a served model missed, each with its figure."""
    failures = missed_figures(report.agreement, report.kl, BAR)
    failures += missed_change(report.applied) if report.applied is not None else []
    if report.prompts[0] < report.prompts[1]:
        failures.append(
            Message(
                "its chat template gives prompts of another length in {n:,} of {total:,} conversations",
                n=report.prompts[1] - report.prompts[0],
                total=report.prompts[1],
            )
        )
    if report.stopped[0] < report.stopped[1]:
        failures.append(
            Message(
                "{n:,} of {total:,} answers do not stop where they stopped in training",
                n=report.stopped[1] - report.stopped[0],
                total=report.stopped[1],
            )
        )
    return failures
