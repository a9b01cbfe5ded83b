"""What one model did on the rows, ready to be compared: kept in a file, so that it is not measured twice."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.core.eval_set import row_fingerprint
from weitiao.core.example import Example, ExtractiveQA
from weitiao.core.files import write_text

KIND = "weitiao results"


@dataclass(frozen=True)
class ComparedRow:
    """A row that models were measured on."""

    input: str
    reference: str
    fingerprint: str
    source: str = ""
    """The file that it is from."""
    cluster: str = ""
    """What it belongs to: rows of one cluster are drawn together."""

    @classmethod
    def of(cls, example: Example, source: str = "", group: str = "") -> "ComparedRow":
        """Rows of one `group` belong together; else questions about one text, and rows with the same input.

        Args:
            group: what the row's column of this name holds.
        """
        shared = group or (example.context if isinstance(example, ExtractiveQA) else example.input_text)
        return cls(example.input_text, example.answer, row_fingerprint(example), source, shared)


@dataclass
class Results:
    """One model's."""

    name: str
    target: str
    rows: dict[str, list[ComparedRow]]
    """By task; "" where there are none."""
    row_results: dict[str, list]
    """As row_results.json has them: "choices", or "task.choices" -> a pair for each row."""
    metrics: tuple[str, ...]
    """What is measured of it by default."""
    tokenizer: str = ""
    """Losses are of the same tokens where this is equal."""
    identity: str = ""
    """Of the model's weights and of how it was measured; "": not known."""
    exams: dict[str, dict[str, bool]] = field(default_factory=dict)
    """By exam: the id of each item -> whether it was answered right."""

    def write(self, file: Path) -> None:
        """As one JSON file."""
        write_text(file, json.dumps({"kind": KIND, **asdict(self)}, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Results":
        """What `write` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record.pop("kind") != KIND:
                raise KeyError("kind")
            rows = {task: [ComparedRow(**x) for x in listed] for task, listed in record.pop("rows").items()}
            return cls(rows=rows, **{**record, "metrics": tuple(record["metrics"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                "{file} holds no results of a model (`weitiao compare` writes them as results/NAME.json)", file=file
            ) from None

    def pairs(self, metric: str, reads: str) -> list | None:
        """What a metric reads of it; None: that was not measured.

        Args:
            metric: its name, with the task where there are several.
        """
        task = metric.rpartition(".")[0]
        prefix = f"{task}." if task else ""
        # answers that equal the choices are kept once (classes that are predicted)
        names = (reads, "choices") if reads == "answers" and metric in self.metrics else (reads,)
        return next((x for name in names if (x := self.row_results.get(prefix + name))), None)


def check_same_rows(results: Sequence[Results]) -> None:
    """
    Raises:
        DataError: two models were not measured on the same rows, in the same order.
    """
    first = results[0]
    for other in results[1:]:
        if first.rows.keys() != other.rows.keys():
            raise DataError(
                "{a} has the tasks {one}, {b} has {two}: they have no rows in common",
                a=first.name, b=other.name, one=", ".join(first.rows) or "-", two=", ".join(other.rows) or "-",
            )  # fmt: skip
        for task in first.rows:
            one, two = ([x.fingerprint for x in y.rows[task]] for y in (first, other))
            if one != two:
                raise DataError(
                    "{a} and {b} were not measured on the same rows: {n:,} and {m:,} rows, {shared:,} of them the same. "
                    "Name rows for both with --data FILE",
                    a=first.name, b=other.name, n=len(one), m=len(two), shared=len(set(one) & set(two)),
                )  # fmt: skip
