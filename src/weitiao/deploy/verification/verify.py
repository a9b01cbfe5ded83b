"""Prove that a form of a tuned model is that model: outputs, template, stop tokens, and that the training is in it.

    outputs     teacher-forced on the Run's own answers: most probable token, KL, largest difference  (fidelity.py)
    template    the token ids of conversations, rendered by the form's own template and tokenizer
    stops       the tokens that end an answer are stop tokens of the form, and it ends answers where the tuned model does
    change      how much of what training changed the form has: with d = log p_tuned - log p_base and
                e = log q_form - log p_base, the projection sum w d e / sum w d d, where w = (p_tuned + p_base) / 2.
                1: all of it; 0: it is the base model, as where an engine ignores an adapter that it was given

A Form is whatever answers with probabilities: a folder, a file in another engine. What must be reached is data: BARS.
With fewer than 2,000 answer tokens one near-tie weighs too much, so that a form is refused only where the whole 95 %
interval misses the bar.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from weitiao.core.messages import Message
from weitiao.deploy.verification.fidelity import CHUNK, AnswerRow, Fidelity, LogProbs, common_vocabulary, compare
from weitiao.deploy.verification.report import (
    Bar,
    ChangeCheck,
    TemplateCheck,
    VerificationReport,
    missed_change,
    missed_figures,
)

CHANGE_POSITIONS = 64  # answer tokens on which the change is measured: each is a vector of V numbers
UNCHANGED = 1e-10  # nats: below this, training changed nothing


class Form(Protocol):
    """One form of a tuned model, opened by its own engine: a merged folder, a GGUF file, an ONNX graph."""

    kind: str
    """Its precision, a key of BARS."""
    stop_ids: tuple[int, ...]
    """The tokens with which the form itself ends an answer, by its own files."""

    def log_probs(self, rows: Sequence[AnswerRow]) -> Sequence[Tensor]:
        """[A, V] fp32 of each row: log p(. | prompt, answer[:t]) for every t. See `LogProbs`."""
        ...

    def template_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int] | None:
        """The ids of a conversation up to where the assistant answers, by the form's own template; None: it has none."""
        ...

    def close(self) -> None:
        """Free what it holds: memory, processes, ports."""
        ...


BARS: dict[str, Bar] = {
    "fp32": Bar(1.0, 1e-6, 3e-3),  # from the order of sums 1e-4, with new tokens 1.5e-3; a wrong merge is above 1e-2
    "bf16": Bar(0.97, 3e-3),  # a right merge had 97.9 % of 2,578 tokens; where it differed, margins were at most 0.29 nats
    "fp16": Bar(0.998, 1e-4),
    "gguf_f32": Bar(0.998, 1e-4),
    "gguf_f16": Bar(0.998, 1e-4),
    "gguf_bf16": Bar(0.97, 3e-3),
    "gguf_q8_0": Bar(0.97, 1e-2),
    "onnx_fp32": Bar(0.999, 1e-6),
    "int8": Bar(0.97, 1e-2),
}
"""By Form.kind. A kind that is not here (gguf_q4_k_m, int4, nf4) has no bar: its figures are reported."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as a template reads it, and the ids with which the Run was trained."""

    messages: Sequence[Mapping[str, Any]]
    ids: Sequence[int]
    """Up to where the assistant answers."""
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class Subject:
    """What a form is compared with: a tuned model and its rows."""

    log_probs: LogProbs
    rows: Sequence[AnswerRow]
    stop_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    """Ids to text, special tokens included."""
    conversations: Sequence[Conversation] = ()
    base: LogProbs | None = None
    """The base model; None: it is not at hand."""
    rows_of: Message = Message("")


def verify(
    subject: Subject, form: Form, name: str, bar: Bar | None = None, track: Callable[..., Iterable[Any]] | None = None
) -> VerificationReport:
    """Compare a form with the tuned model; `report.check()` refuses one that missed a bar.

    Args:
        name: of the form, for messages: its folder or file.
        bar: default: that of the form's kind.
        track: (batches of rows, label) -> the batches, with a progress bar.

    Raises:
        ModelError: it gives no probabilities, or the vocabularies are not those of one model.
    """
    started = time.perf_counter()
    change = None if subject.base is None else ChangeTally(subject.base, rows_of_change(subject.rows))
    observe = None if change is None else change.add
    fidelity = compare(subject.log_probs, form.log_probs, subject.rows, subject.stop_ids, track, observe)
    report = VerificationReport(name, form.kind, bar or BARS.get(form.kind, Bar()), fidelity, rows_of=subject.rows_of)
    report.first_difference = describe_difference(subject, fidelity)
    report.template = check_template(subject, form)
    missing = [x for x in subject.stop_ids if x not in form.stop_ids]
    report.missing_stops = tuple(subject.decode([x]) for x in missing)
    report.change = change and change.check
    report.failures = failures_of(report)
    report.seconds = time.perf_counter() - started
    return report


def failures_of(report: VerificationReport) -> list[Message]:
    """What a form missed, each with its figure."""
    x, bar = report.fidelity, report.bar
    failures = missed_figures(x.agreement, x.kl, bar)
    if bar.logit_difference is not None and not x.max_logit_difference <= bar.logit_difference:
        failures.append(
            Message(
                "a logit differs by {value:.1e}, at most {bar:.0e} is asked", value=x.max_logit_difference,
                bar=bar.logit_difference,
            )
        )  # fmt: skip
    if failures and report.first_difference:
        failures[-1] = Message("{failure} ({where})", failure=failures[-1], where=report.first_difference)
    template = report.template
    if template is not None and template.equal < template.conversations:
        failures.append(
            Message(
                "its chat template gives other token ids in {n:,} of {total:,} conversations: {difference}",
                n=template.conversations - template.equal,
                total=template.conversations,
                difference=template.first_difference,
            )
        )
    if report.missing_stops:
        failures.append(
            Message("answers end with {tokens}, which does not stop it", tokens=" / ".join(report.missing_stops))
        )
    change = report.change
    if change is not None and change.trained < UNCHANGED:
        failures.append(Message("training changed nothing: the run answers as its base model"))
    elif change is not None:
        failures += missed_change(change.applied)
    return failures


def describe_difference(subject: Subject, fidelity: Fidelity) -> Message:
    """The first position where the most probable tokens differ, with the text before it; "" if there is none."""
    at = fidelity.first_difference
    if at is None:
        return Message("")
    row = subject.rows[at.row]
    before = [*row.prompt_ids, *row.answer_ids][: len(row.prompt_ids) + at.position]
    return Message(
        "first difference: row {row}, token {position} of the answer, after {before!r}: {expected!r} in training, "
        "{actual!r} here",
        row=at.row + 1,
        position=at.position + 1,
        before=subject.decode(before)[-60:],
        expected=subject.decode([at.expected]),
        actual=subject.decode([at.actual]),
    )


def check_template(subject: Subject, form: Form) -> TemplateCheck | None:
    """Render every conversation with the form's own template; None: it has none, or there are no conversations."""
    equal, first = 0, Message("")
    for i, conversation in enumerate(subject.conversations):
        ids = form.template_ids(conversation.messages, conversation.tools)
        if ids is None:
            return None
        if list(ids) == list(conversation.ids):
            equal += 1
        elif not first:
            first = _id_difference(subject, i, conversation.ids, ids)
    return TemplateCheck(len(subject.conversations), equal, first) if subject.conversations else None


def _id_difference(subject: Subject, number: int, expected: Sequence[int], actual: Sequence[int]) -> Message:
    t = next((t for t, (a, b) in enumerate(zip(expected, actual)) if a != b), min(len(expected), len(actual)))
    return Message(
        "conversation {number}, token {t}: {expected!r} in training, {actual!r} here",
        number=number + 1,
        t=t + 1,
        expected=subject.decode(list(expected[t : t + 8])),
        actual=subject.decode(list(actual[t : t + 8])),
    )


def rows_of_change(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """The first rows, on which the change is measured."""
    chosen: list[AnswerRow] = []
    for row in rows:
        if sum(len(x.answer_ids) for x in chosen) >= CHANGE_POSITIONS:
            break
        chosen.append(row)
    return chosen


@dataclass
class ChangeTally:
    """Sums over the positions on which the change is measured: how far a form went from the base to the tuned model."""

    base: LogProbs
    rows: Sequence[AnswerRow]
    positions: int = 0
    nats: float = 0.0
    along: float = 0.0
    norm: float = 0.0

    def add(self, rows: Sequence[AnswerRow], tuned: Sequence[Tensor], form: Sequence[Tensor]) -> None:
        """Those of these rows that are measured; log-probabilities [A, V] of the tuned model and of the form."""
        chosen = [(row, p, q) for row, p, q in zip(rows, tuned, form) if any(row is x for x in self.rows)]
        for (_, p, q), b in zip(chosen, self.base([row for row, _, _ in chosen]) if chosen else ()):
            self._add_row(*(x.detach().cpu() for x in (p, b, q)))

    def _add_row(self, p: Tensor, b: Tensor, q: Tensor) -> None:
        for at in range(0, len(p), size := max(1, CHUNK // max(p.shape[1], q.shape[1]))):
            part = slice(at, at + size)
            (tuned_part, base_part), (_, form_part) = (
                common_vocabulary(p[part], b[part]),
                common_vocabulary(p[part], q[part]),
            )
            width = min(tuned_part.shape[1], form_part.shape[1])
            x, y, z = (w[:, :width].clamp(min=-1e3) for w in (tuned_part, base_part, form_part))
            weight, d, e = (x.exp() + y.exp()) / 2, x - y, z - y
            self.nats += float((x.exp() * d).sum())
            self.along += float((weight * d * e).sum())
            self.norm += float((weight * d * d).sum())
        self.positions += len(p)

    @property
    def check(self) -> ChangeCheck:
        nats = max(0.0, self.nats) / max(1, self.positions)
        return ChangeCheck(nats, self.along / self.norm if self.norm else 0.0, self.positions)
