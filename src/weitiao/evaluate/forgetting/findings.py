"""What a model forgot: every probe before and after on the same items, as a sentence with its interval; and what to do.

right or wrong    McNemar's exact test, Tango's interval of the difference     (comparison/mcnemar.py)
bits per byte     paired bootstrap over passages                               (comparison/paired_bootstrap.py)

p-values are Holm's, over all probes of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.evaluate.comparison.difference import Difference, difference, judged_together
from weitiao.evaluate.forgetting.probes import BITS, ProbeResult

RIGHT, WRONG = "right", "wrong"
DRIFT = "drift"
LABELS: dict[str, Message] = {
    "exam.world_capitals": Message("capital cities"),
    "behaviour.format": Message("follows a format"),
    "behaviour.stops": Message("ends its answers"),
    "behaviour.language": Message("answers in the language"),
    "behaviour.refuses": Message("declines"),
    BITS: Message("neutral text"),
}
LANGUAGE_NAMES = {"en": Message("English"), "zh": Message("Chinese")}


@dataclass(frozen=True)
class Finding:
    """One probe, before and after."""

    probe: str
    difference: Difference
    guessing: float = 0.0
    """What guessing gets."""

    @property
    def verdict(self) -> str:
        """A key of comparison.difference.VERDICTS."""
        return "open" if self.unknown_before else self.difference.verdict

    @property
    def unknown_before(self) -> bool:
        """Not better than guessing before: there was nothing to forget."""
        return self.guessing > 0 and self.difference.reference_score.low <= self.guessing

    @property
    def label(self) -> Message:
        """The probe in words: "capital cities (English)"."""
        name, _, language = self.probe.rpartition("_")
        if name not in LABELS or language not in LANGUAGE_NAMES:
            return Message(self.probe)
        return Message("{what} ({language})", what=LABELS[name], language=LANGUAGE_NAMES[language])

    @property
    def sentence(self) -> Message:
        """'capital cities (English): 71 -> 64 %, -7.2 +- 4.1 (n = 165)'; the larger half of an unequal interval."""
        x = self.difference
        before, after = x.reference_score.value, x.candidate_score.value
        half = max(x.change - x.low, x.high - x.change)
        is_bits = self.probe.startswith(BITS)
        scale = 1 if is_bits else 100
        values = {"before": before, "after": after, "change": x.change, "half": half}
        facts = {"what": self.label, "n": x.n, **{key: scale * value for key, value in values.items()}}
        text = Message("{what}: {before:.0f} → {after:.0f} %, {change:+.1f} ± {half:.1f} (n = {n})", **facts)
        if is_bits:
            template = Message("{what}: {before:.3f} → {after:.3f} bits per byte, {change:+.3f} ± {half:.3f} (n = {n})")
            text = Message(template, **facts)
        if self.unknown_before:
            guess = 100 * self.guessing
            return Message("{finding}; not better than guessing before ({guess:.0f} %)", finding=text, guess=guess)
        return text

    def as_json(self) -> dict[str, Any]:
        """As scores.json has it."""
        values = {**self.difference.as_json(), "verdict": self.verdict, "guessing": self.guessing}
        return {"probe": self.probe, **values, "label": self.label.as_json(), "sentence": self.sentence.as_json()}


@dataclass(frozen=True)
class Forgetting:
    """All findings of a run."""

    findings: tuple[Finding, ...]
    advice: Message | None = None
    """What to do; None: no loss is shown."""
    drift: Mapping[str, Any] | None = None
    """KL from the base on neutral text, in nats per token: value, low, high, n."""
    notes: tuple[Message, ...] = ()
    """What was left out."""

    @property
    def worse(self) -> list[Finding]:
        return [x for x in self.findings if x.verdict == "worse"]

    def advised(self, advice: Message) -> "Forgetting":
        """With what to do, where there is a loss."""
        return replace(self, advice=advice if self.worse else None)

    def as_json(self) -> dict[str, Any]:
        """As scores.json has it, under `forgetting`."""
        return {
            "findings": [x.as_json() for x in self.findings],
            "advice": self.advice.as_json() if self.advice else None,
            "drift": dict(self.drift) if self.drift else None,
            "notes": [x.as_json() for x in self.notes],
        }


def findings(before: Sequence[ProbeResult], after: Sequence[ProbeResult]) -> list[Finding]:
    """Every probe that was asked before and after, on the items that both have."""
    paired: dict[str, list[tuple[ProbeResult, ProbeResult]]] = {}
    earlier = {(x.probe, x.id): x for x in before}
    for x in after:
        if (x.probe, x.id) in earlier:
            paired.setdefault(x.probe, []).append((earlier[x.probe, x.id], x))
    differences = [_difference(probe, pairs) for probe, pairs in paired.items()]
    guessing = [sum(1 / max(1, x.options) for x, _ in pairs) / len(pairs) for pairs in paired.values()]
    return [
        Finding(x.metric, x, guess if x.metric.startswith("exam.") and guess < 1 else 0.0)
        for x, guess in zip(judged_together(differences), guessing)
    ]


def _difference(probe: str, pairs: Sequence[tuple[ProbeResult, ProbeResult]]) -> Difference:
    if probe.startswith(BITS):
        sides = ([(x[k].value, x[k].size) for x in pairs] for k in (0, 1))
        return difference(create(Metric, BITS), probe, "after", (next(sides), next(sides)))
    sides = ([(RIGHT if x[k].value else WRONG, RIGHT) for x in pairs] for k in (0, 1))
    return difference(create(Metric, "accuracy"), probe, "after", (next(sides), next(sides)))
