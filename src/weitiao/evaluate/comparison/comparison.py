"""A comparison: every candidate against the first model, by every metric that both have, with rows to read and slices.

comparison.json      differences with intervals and p-values, slices, gates
rows.jsonl           each row: input, reference, what each model said, its value by each metric
results/NAME.json    what one model did, which a later comparison takes in place of the model
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.errors import DataError
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.core.score import Score
from weitiao.evaluate.comparison.difference import LOSSES, Difference, difference, judged_together, row_values
from weitiao.evaluate.comparison.gates import GateResult
from weitiao.evaluate.comparison.results import ComparedRow, Results, check_same_rows
from weitiao.evaluate.comparison.slices import slices
from weitiao.evaluate.finite_json import finite

SAME_TOKENS = ("row_losses",)  # comparable only between equal tokenizers
RIGHT, WRONG = "right", "wrong"  # of an exam's item
KINDS = {
    "length": Message("characters"),
    "label": Message("label"),
    "source": Message("source"),
    "script": Message("script"),
}


@dataclass(frozen=True)
class SliceDifference:
    """A difference on a part of the rows."""

    kind: str
    name: str
    difference: Difference

    @property
    def kind_text(self) -> str:
        return str(KINDS[self.kind])

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, **self.difference.as_json()}


@dataclass(frozen=True)
class RowChange:
    """What two models said on one row, and how their values differ."""

    row: ComparedRow
    candidate: str
    metric: str
    reference_answer: str
    candidate_answer: str
    change: float
    """Positive where the candidate is better."""


class JudgedPair(Protocol):
    """What a judge model says of two models (review/review_results.py)."""

    @property
    def first(self) -> str: ...
    @property
    def second(self) -> str: ...
    @property
    def first_wins(self) -> int: ...
    @property
    def second_wins(self) -> int: ...
    @property
    def ties(self) -> int: ...
    @property
    def share(self) -> Score: ...


class JudgeRecord(Protocol):
    """What a comparison needs of the results of a judge model (review/judge_model.py)."""

    @property
    def judge(self) -> str: ...
    @property
    def pairs(self) -> Sequence[JudgedPair]: ...

    def as_json(self) -> dict[str, Any]: ...


@dataclass
class Comparison:
    """All that a comparison found."""

    results: list[Results]
    """The reference first."""
    differences: list[Difference]
    slices: list[SliceDifference] = field(default_factory=list)
    """Of the first metric that has a value for each row; the worst first."""
    changes: list[RowChange] = field(default_factory=list)
    """Rows by the same metric: regressions first, the largest of them first; then wins."""
    gates: list[GateResult] = field(default_factory=list)
    judges: Sequence["JudgeRecord"] = ()
    """What judge models say of the answers."""
    notes: list[Message] = field(default_factory=list)
    folder: Path | None = None
    """Where it is recorded."""
    report: Path | None = None
    """The page to look at."""

    @property
    def reference(self) -> Results:
        return self.results[0]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(x.passed for x in self.gates)

    @property
    def regressions(self) -> list[RowChange]:
        return [x for x in self.changes if x.change < 0]

    @property
    def wins(self) -> list[RowChange]:
        return [x for x in self.changes if x.change > 0]

    @property
    def rows_fingerprint(self) -> str:
        """Changes when any row does, or their order."""
        prints = "".join(x.fingerprint for rows in self.reference.rows.values() for x in rows)
        return hashlib.sha256(prints.encode()).hexdigest()[:16]

    @property
    def footnote(self) -> Message:
        """What p and brackets mean."""
        tests = dict.fromkeys(str(x.test_text) for x in self.differences if x.test)
        return Message(
            "p is adjusted by Holm over {n} tests; brackets are 95 % intervals of the difference on the same rows; {tests}",
            n=sum(bool(x.test) for x in self.differences),
            tests=", ".join(tests),
        )

    def as_json(self) -> dict[str, Any]:
        """What comparison.json holds."""
        return finite(
            {
                "reference": self.reference.name,
                "models": [{"name": x.name, "target": x.target, "identity": x.identity} for x in self.results],
                "rows_fingerprint": self.rows_fingerprint,
                "rows": {task: len(rows) for task, rows in self.reference.rows.items()},
                "differences": [x.as_json() for x in self.differences],
                "slices": [x.as_json() for x in self.slices],
                "regressions": [asdict(x) for x in self.regressions],
                "wins": [asdict(x) for x in self.wins],
                "gates": [x.as_json() for x in self.gates],
                "passed": self.passed,
                "judge_models": [x.as_json() for x in self.judges],
                "notes": [x.as_json() for x in self.notes],
            }
        )

    def write(self, folder: Path) -> None:
        """The record folder."""
        (folder / "results").mkdir(parents=True, exist_ok=True)
        for x in self.results:
            x.write(folder / "results" / f"{x.name}.json")
        self.folder = folder
        write_text(folder / "rows.jsonl", "".join(json.dumps(finite(x), ensure_ascii=False) + "\n" for x in self._lines()))
        write_text(folder / "comparison.json", json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for task, rows in self.reference.rows.items():
            values = self._values(task)
            for i, row in enumerate(rows):
                answers = {x.name: answer_of(x, task, i) for x in self.results}
                own = {name: {x: v[i] for x, v in by_name.items() if i < len(v)} for name, by_name in values.items()}
                lines.append({"task": task, "row": i, **asdict(row), "answers": answers, "values": own})
        return lines

    def _values(self, task: str) -> dict[str, dict[str, list[float]]]:
        """Metric -> model -> the value of each row of a task."""
        found: dict[str, dict[str, list[float]]] = {}
        for name in dict.fromkeys(x.metric for x in self.differences):
            if name.rpartition(".")[0] == task:
                metric, by_model = _metric(name), {}
                for x in self.results:
                    values = row_values(metric, x.pairs(name, metric.reads) or [])
                    if values is not None and _is_aligned(x, name, metric):
                        by_model[x.name] = values
                found[name] = by_model
        return found


def compare_results(results: Sequence[Results], metrics: Sequence[str] = ()) -> Comparison:
    """Compare every other model with the first one.

    Args:
        metrics: names; (): those that all models have.

    Raises:
        DataError: the rows differ, there are none, or a metric was not measured of all.
    """
    check_same_rows(results)
    exams, notes = _shared_exams(results)
    if not any(results[0].rows.values()) and not exams:
        raise DataError("there are no rows to compare on")
    names, more = _shared_metrics(results, metrics) if any(results[0].rows.values()) else ([], [])
    notes += more
    reference, differences = results[0], []
    for other in results[1:]:
        for name in names:
            pairs, more = _pairs(reference, other, name)
            notes += [x for x in more if x not in notes]
            rows = reference.rows[name.rpartition(".")[0]]
            aligned = _is_aligned(reference, name, _metric(name))
            clusters = [x.cluster for x in rows][: len(pairs[0])] if aligned else []
            differences.append(difference(_metric(name), name, other.name, pairs, clusters))
        for name, ids in exams.items():
            items = [(RIGHT if x.exams[name][i] else WRONG, RIGHT) for x in (reference, other) for i in ids]
            halves = items[: len(ids)], items[len(ids) :]
            differences.append(difference(_metric("accuracy"), f"exam.{name}", other.name, halves))
    comparison = Comparison(list(results), judged_together(differences), notes=notes)
    if (main := _main_metric(comparison, names)) is not None:
        comparison.slices, comparison.changes = _slices(comparison, main), _changes(comparison, main)
    return comparison


def _main_metric(comparison: Comparison, names: Sequence[str]) -> str | None:
    """The first metric that has a value for each row, answers before losses; None: there is none."""
    has_rows = {x.metric for x in comparison.differences if x.wins is not None}
    found = [x for x in names if x in has_rows and _is_aligned(comparison.reference, x, _metric(x))]
    return min(found, key=lambda x: _metric(x).reads in LOSSES, default=None)


def answer_of(results: Results, task: str, i: int, reads: str = "answers") -> str:
    """What a model said on a row: its generated text, or the answer it chose.

    Args:
        reads: which of them comes first.
    """
    prefix = f"{task}." if task else ""
    for name in sorted(("answers", "choices"), key=lambda x: x != reads):
        pairs = results.row_results.get(prefix + name) or []
        if i < len(pairs):
            said = pairs[i][0]
            return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return ""


def _metric(name: str) -> Metric:
    return create(Metric, name.rpartition(".")[2])


def _is_aligned(results: Results, name: str, metric: Metric) -> bool:
    """Whether its i-th pair is of the i-th row (a limit cuts the end off; split rows have several losses)."""
    rows, pairs = results.rows[name.rpartition(".")[0]], results.pairs(name, metric.reads) or []
    return len(pairs) == len(rows) if metric.reads in LOSSES else 0 < len(pairs) <= len(rows)


def _shared_metrics(results: Sequence[Results], requested: Sequence[str]) -> tuple[list[str], list[Message]]:
    notes, names = [], []
    for name in requested or results[0].metrics:
        if name.rpartition(".")[0] not in results[0].rows:  # the weighted sum of several tasks
            continue
        reads = _metric(name).reads
        lacking = [x.name for x in results if x.pairs(name, reads) is None or not (requested or name in x.metrics)]
        if not lacking and reads in SAME_TOKENS and len({x.tokenizer for x in results}) > 1:
            notes.append(Message("{metric} is not compared: the models have different tokens", metric=name))
        elif lacking:
            text = Message("{metric} is not compared: it was not measured of {names}")
            notes.append(Message(text, metric=name, names=", ".join(lacking)))
        else:
            names.append(name)
    if (not names and not results[0].exams) or (requested and len(names) < len(requested)):
        reasons = "; ".join(map(str, notes)) or ", ".join(requested)
        raise DataError("there is nothing to compare by: {reasons}", reasons=reasons)
    return names, notes


def _pairs(one: Results, two: Results, name: str) -> tuple[tuple[list, list], list[Message]]:
    """The pairs of the rows that both have: a limit may have ended one of them earlier."""
    reads = _metric(name).reads
    a, b = one.pairs(name, reads) or [], two.pairs(name, reads) or []
    if reads == "row_losses" and [n for _, n in a] != [n for _, n in b]:
        raise DataError("{metric}: {a} and {b} have different tokens on the same rows", metric=name, a=one.name, b=two.name)
    n = min(len(a), len(b))
    note = Message("{metric} is compared on the first {n:,} rows, which both have", metric=name, n=n)
    return (a[:n], b[:n]), [note] if len(a) != len(b) else []


def _shared_exams(results: Sequence[Results]) -> tuple[dict[str, list[str]], list[Message]]:
    """The items of each exam that all models have taken."""
    exams, notes = {}, []
    for name in results[0].exams:
        if lacking := [x.name for x in results if name not in x.exams]:
            text = Message("{metric} is not compared: it was not measured of {names}")
            notes.append(Message(text, metric=f"exam.{name}", names=", ".join(lacking)))
            continue
        ids = [i for i in results[0].exams[name] if all(i in x.exams[name] for x in results)]
        if any(len(x.exams[name]) > len(ids) for x in results):
            text = Message("exam.{exam} is compared on the {n:,} items that all models were asked")
            notes.append(Message(text, exam=name, n=len(ids)))
        exams[name] = ids
    return exams, notes


def _slices(comparison: Comparison, name: str) -> list[SliceDifference]:
    """By one metric, the largest losses first; Holm's adjustment is over all slices."""
    task, found = name.rpartition(".")[0], []
    for other in comparison.results[1:]:
        (a, b), _ = _pairs(comparison.reference, other, name)
        rows = comparison.reference.rows[task][: len(a)]
        for kind, groups in slices(rows).items():
            for label, members in groups.items():
                pairs = [a[i] for i in members], [b[i] for i in members]
                clusters = [rows[i].cluster for i in members]
                found.append((kind, label, difference(_metric(name), name, other.name, pairs, clusters)))
    judged = judged_together([x for *_, x in found])
    listed = [SliceDifference(kind, label, x) for (kind, label, _), x in zip(found, judged)]
    return sorted(listed, key=lambda x: x.difference.change * (1 if x.difference.candidate_score.higher_is_better else -1))


def _changes(comparison: Comparison, name: str) -> list[RowChange]:
    task, metric, found = name.rpartition(".")[0], _metric(name), []
    for other in comparison.results[1:]:
        pairs, _ = _pairs(comparison.reference, other, name)
        one, two = (row_values(metric, x) or [] for x in pairs)
        higher = next(x for x in comparison.differences if x.metric == name).candidate_score.higher_is_better
        for i, (a, b) in enumerate(zip(one, two)):
            if a != b:
                before, after = (answer_of(x, task, i, metric.reads) for x in (comparison.reference, other))
                change = (b - a) if higher else (a - b)
                found.append(RowChange(comparison.reference.rows[task][i], other.name, name, before, after, change))
    return sorted(found, key=lambda x: (x.change > 0, -abs(x.change)))
