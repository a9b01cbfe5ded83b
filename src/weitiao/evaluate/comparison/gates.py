"""Gates for CI: what a candidate must reach, and what it must not lose.

    --require "f1>=0.82"        the candidate's score; 82% is the same
    --no-worse accuracy:1%      the candidate may be worse than the reference by at most 1 percentage point
    --no-worse loss:0.05        by at most 0.05 in the metric's own unit
    --no-worse exams:1%         each exam

The value decides, or with `by_interval` the end of the 95 % interval that speaks against the candidate: then the gate
holds only where the rows are enough to show it.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.registry import find
from weitiao.core.score import format_score, is_percentage
from weitiao.evaluate.comparison.difference import Difference

REQUIRE = re.compile(r"\s*([\w.-]+)\s*(>=|<=|>|<)\s*([+-]?[0-9.]+(?:e[+-]?\d+)?)\s*(%?)\s*", re.IGNORECASE)
NO_WORSE = re.compile(r"\s*([\w.-]+)\s*:\s*([0-9.]+(?:e[+-]?\d+)?)\s*(%?)\s*", re.IGNORECASE)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
EXAMS, EXAM = "exams", "exam."


@dataclass(frozen=True)
class Gate:
    """One condition on every candidate."""

    text: str
    metric: str
    bound: float
    """Of require: the score; of no_worse: how much may be lost. A percentage is divided by 100."""
    operator: str = ""
    """Of require; "": no_worse."""

    def metrics(self, measured: Sequence[str]) -> list[str]:
        """The metrics that it is about.

        Raises:
            RecipeError: it is about none that was measured: a gate that cannot close is no gate.
        """
        found = [x for x in measured if x == self.metric or (self.metric == EXAMS and x.startswith(EXAM))]
        if not found:
            raise RecipeError(
                "{gate}: {metric} was not measured; there are: {known}",
                gate=self.text, metric=self.metric, known=", ".join(measured),
            )  # fmt: skip
        return found


@dataclass(frozen=True)
class GateResult:
    """What a gate says of one candidate and metric."""

    gate: str
    candidate: str
    metric: str
    passed: bool
    message: Message

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "message": self.message.as_json()}


def read_gates(require: Sequence[str], no_worse: Sequence[str]) -> list[Gate]:
    """
    >>> read_gates(["f1>=82%"], ["loss:0.05"])[0].bound
    0.82

    Raises:
        RecipeError: one is not understood.
    """
    gates = []
    for text in require:
        if (found := REQUIRE.fullmatch(text)) is None or (bound := _number(found[3], found[4])) is None:
            raise RecipeError("--require {text!r} is not understood: METRIC>=VALUE, as f1>=0.82", text=text)
        gates.append(Gate(text.strip(), found[1], bound, found[2]))
    for text in no_worse:
        if (found := NO_WORSE.fullmatch(text)) is None or (bound := _number(found[2], found[3])) is None:
            raise RecipeError("--no-worse {text!r} is not understood: METRIC:MARGIN, as accuracy:1%", text=text)
        is_exam = found[1] == EXAMS or found[1].startswith(EXAM)
        if not is_exam:
            find(Metric, found[1].rpartition(".")[2])  # a name that no metric has is said to be unknown
        relative = bool(found[3]) and not is_percentage(found[1]) and not is_exam
        if relative:
            raise RecipeError(
                "--no-worse {text!r}: {metric} is no percentage; give the margin in its own unit, as {metric}:0.05",
                text=text, metric=found[1],
            )  # fmt: skip
        gates.append(Gate(text.strip(), found[1], bound))
    return gates


def _number(text: str, percent: str) -> float | None:
    try:
        return float(text) / (100 if percent else 1)
    except ValueError:
        return None


def check_gates(gates: Sequence[Gate], differences: Sequence[Difference], by_interval: bool = False) -> list[GateResult]:
    """Each gate on each candidate.

    Args:
        by_interval: the end of the interval must hold, not only the value.

    Raises:
        RecipeError: a gate is about a metric that was not measured.
    """
    results, measured = [], list(dict.fromkeys(x.metric for x in differences))
    for gate in gates:
        names = gate.metrics(measured)
        decide = _require if gate.operator else _no_worse
        results += [decide(gate, x, by_interval) for x in differences if x.metric in names]
    return results


def _require(gate: Gate, x: Difference, by_interval: bool) -> GateResult:
    score, rising = x.candidate_score, gate.operator[0] == ">"
    value = (score.low if rising else score.high) if by_interval else score.value
    passed = bool(score.n) and OPERATORS[gate.operator](value, gate.bound)
    text = Message("{candidate}: {score}", candidate=x.candidate, score=format_score(x.metric, score.as_json()))
    return GateResult(gate.text, x.candidate, x.metric, passed, text)


def _no_worse(gate: Gate, x: Difference, by_interval: bool) -> GateResult:
    higher = x.candidate_score.higher_is_better
    change = ((x.low if higher else x.high) if by_interval else x.change) * (1 if higher else -1)
    passed = x.verdict != "not_measured" and change >= -gate.bound - 1e-12
    text = Message("{candidate}: {metric} {change}", candidate=x.candidate, metric=x.metric, change=x.change_text)
    return GateResult(gate.text, x.candidate, x.metric, passed, text)
