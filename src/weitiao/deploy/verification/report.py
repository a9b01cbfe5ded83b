"""What a verification asked and measured: for the terminal, for verification.json, for the README of the form."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weitiao.core.errors import ModelError
from weitiao.core.files import write_text
from weitiao.core.messages import Message, joined
from weitiao.core.score import Score
from weitiao.deploy.verification.fidelity import Fidelity

REPORT = "verification.json"
ENOUGH = 2000  # answer tokens from which on a figure alone is compared with its bar; with fewer, its interval
SECTION = "<!-- verification -->"  # begins the section of README.md


@dataclass(frozen=True)
class Bar:
    """What a form must reach on the answers; None: it is only reported."""

    agreement: float | None = None
    """The least share of equal most probable tokens."""
    kl: float | None = None
    """The most nats per token."""
    logit_difference: float | None = None
    """The largest difference of log-probabilities, over all tokens."""


@dataclass(frozen=True)
class TemplateCheck:
    """Whether the form renders conversations as in training."""

    conversations: int
    equal: int
    first_difference: Message = Message("")


@dataclass(frozen=True)
class ChangeCheck:
    """How much of what training changed the form has."""

    trained: float
    """Nats per answer token between the tuned model and its base."""
    applied: float
    """1: all of it; 0: the form answers as the base model."""
    positions: int


@dataclass
class VerificationReport:
    """What was compared, what must be reached, and what was not."""

    form: str
    """The folder, the file or the address."""
    kind: str
    bar: Bar
    fidelity: Fidelity
    first_difference: Message = Message("")
    """In words, with the text around it."""
    template: TemplateCheck | None = None
    """None: the form has no template, or the Run no conversation."""
    missing_stops: tuple[str, ...] = ()
    """Tokens that end answers in training and not in the form."""
    change: ChangeCheck | None = None
    """None: the base model is not at hand."""
    rows_of: Message = Message("")
    """Which rows of the Run."""
    seconds: float = 0.0
    failures: list[Message] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def check(self) -> None:
        """Refuse the form if it missed a bar.

        Raises:
            ModelError: naming each figure that was missed.
        """
        refuse_failures(self.form, self.failures)

    @property
    def lines(self) -> list[Message]:
        """The report, a sentence a line: what was asked beside what was measured."""
        x, bar = self.fidelity, self.bar
        lines = [
            Message(
                "answers: {n:,} tokens of {rows:,} rows ({rows_of}), each after the same tokens",
                n=x.positions,
                rows=x.rows,
                rows_of=self.rows_of,
            ),
            agreement_line(x.agreement, bar),
            kl_line(x.kl, bar),
            Message(
                "largest difference of a logit {all:.1e}{asked}; of tokens with p ≥ 1e-4 {probable:.1e}",
                all=x.max_logit_difference,
                probable=x.max_difference,
                asked=_asked("{:.0e}", bar.logit_difference, "≤"),
            ),
        ]
        if x.margins is not None:
            lines.append(
                Message(
                    "where it differs, the tuned model prefers its own token by {median:.1e} nats (median), at most by "
                    "{largest:.1e}",
                    median=x.margins[0],
                    largest=x.margins[1],
                )
            )
        if self.first_difference:
            lines.append(self.first_difference)
        if x.ends is not None:
            lines.append(
                Message(
                    "where the tuned model ends its answer, the form does too: {value:.1%} of {n:,}",
                    value=x.ends.value,
                    n=x.ends.n,
                )
            )
        if self.template is not None:
            lines.append(
                Message(
                    "template: {equal:,} of {n:,} conversations have the same token ids",
                    equal=self.template.equal,
                    n=self.template.conversations,
                )
            )
        if self.change is not None:
            lines.append(
                Message(
                    "training changed the base by {kl:.1e} nats a token; the form has {applied:.1%} of that change",
                    kl=self.change.trained,
                    applied=self.change.applied,
                )
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """As verification.json has it."""
        x = self.fidelity
        return {
            "form": self.form,
            "kind": self.kind,
            "passed": self.passed,
            "failures": [str(x) for x in self.failures],
            "bar": asdict(self.bar),
            "positions": x.positions,
            "rows": x.rows,
            "rows_of": str(self.rows_of),
            "agreement": x.agreement.as_json(),
            "kl": x.kl.as_json(),
            "max_logit_difference": x.max_logit_difference,
            "max_difference": x.max_difference,
            "margins": list(x.margins) if x.margins else None,
            "first_difference": str(self.first_difference) or None,
            "ends": x.ends.as_json() if x.ends else None,
            "template": {"conversations": self.template.conversations, "equal": self.template.equal}
            if self.template
            else None,
            "missing_stops": list(self.missing_stops),
            "change": asdict(self.change) if self.change else None,
            "seconds": round(self.seconds, 1),
        }

    def write(self, folder: Path) -> None:
        """verification.json in the form's folder, and a section of its README.md."""
        write_text(folder / REPORT, json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")
        readme = folder / "README.md"
        before = readme.read_text(encoding="utf-8").partition(SECTION)[0].rstrip() if readme.is_file() else ""
        title = (
            Message("Compared with the run it was made of") if self.passed else Message("NOT the model that was trained")
        )
        lines = [SECTION, f"## {title}", *(f"- {x}" for x in self.failures), *(f"- {x}" for x in self.lines)]
        write_text(readme, "\n".join([*([before, ""] if before else []), *lines]) + "\n")


def agreement_line(agreement: Score, bar: Bar) -> Message:
    """The share of equal most probable tokens, beside its bar."""
    return Message(
        "most probable token the same: {value:.2%} [{low:.2%}, {high:.2%}]{asked}, n = {n:,} answer tokens",
        value=agreement.value,
        low=agreement.low,
        high=agreement.high,
        asked=_asked("{:.1%}", bar.agreement, "≥"),
        n=agreement.n,
    )


def kl_line(kl: Score, bar: Bar) -> Message:
    """The KL, beside its bar."""
    return Message(
        "KL {value:.1e} nats a token [{low:.1e}, {high:.1e}]{asked}",
        value=kl.value,
        low=kl.low,
        high=kl.high,
        asked=_asked("{:.0e}", bar.kl, "≤"),
    )


def missed_figures(agreement: Score, kl: Score, bar: Bar) -> list[Message]:
    """What misses its bar: with ENOUGH answer tokens a figure itself, with fewer only where its whole interval does."""
    enough, failures = agreement.n >= ENOUGH, []
    if bar.agreement is not None and (agreement.value if enough else agreement.high) < bar.agreement:
        failures.append(
            Message(
                "{value:.2%} of the most probable tokens are the same, {bar:.1%} is asked",
                value=agreement.value,
                bar=bar.agreement,
            )
        )
    if bar.kl is not None and not (kl.value if enough else kl.low) <= bar.kl:
        failures.append(Message("KL is {value:.1e} nats, at most {bar:.0e} is asked", value=kl.value, bar=bar.kl))
    return failures


def missed_change(applied: float) -> list[Message]:
    """A form that lacks what training changed, or has it twice."""
    if 0.5 <= applied <= 1.5:
        return []
    return [
        Message(
            "it has {applied:.0%} of what training changed: the adapter was not applied, or not as in training",
            applied=applied,
        )
    ]


def _asked(form: str, value: float | None, sign: str) -> str:
    return "" if value is None else f" ({sign} {form.format(value)})"


def refuse_failures(form: str, failures: Sequence[Message]) -> None:
    """Refuse a form that missed a bar.

    Raises:
        ModelError: naming each figure that was missed.
    """
    if failures:
        raise ModelError(
            "{form} is not the tuned model: {failures}. Do not use it.", form=form, failures=joined("; ", failures)
        )
