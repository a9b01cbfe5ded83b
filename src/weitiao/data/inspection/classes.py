"""How rows are spread over classes, and class names that look like mistakes."""

from collections import Counter, defaultdict
from typing import Any

from weitiao.core.class_names import folded
from weitiao.data.inspection.row_store import RowBatch
from weitiao.data.label_checks import NO_CLASS

SHOWN = 60  # classes
MAX_ANSWERS = 64  # more different answers are no closed set
LEAST_ROWS = 10  # for each answer of a closed set, on average
FEW = 10  # rows of a class that is too rare to learn
UNBALANCED = 20.0  # times as many rows of the most frequent class as of the rarest one


class ClassCounts:
    """Rows of each class; of tags, rows with an entity of each type; of answers that are a closed set, each answer."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._answers: Counter[str] | None = Counter()
        self._rows = 0

    def add(self, batch: RowBatch) -> None:
        """Count a batch."""
        for x in batch.rows:
            if x.label:
                self._rows += 1
                self._counts.update(x.classes)
            elif x.answer and self._answers is not None:
                self._answers[x.answer.strip()] += 1
                if len(self._answers) > MAX_ANSWERS:
                    self._answers = None

    def result(self) -> dict[str, Any]:
        """{n, classes, closed: they are answers, counts: [[name, rows]] the most frequent first, rare, ratio, spellings,
        missing}."""
        answers = self._answers
        closed = False
        if answers and not self._rows and answers.total() >= LEAST_ROWS * len(answers):
            closed, self._counts, self._rows = True, answers, answers.total()
        counts = self._counts.most_common()
        groups: dict[str, list[str]] = defaultdict(list)
        for name, _ in counts:
            groups[folded(name)].append(name)
        is_sign = {x for x, _ in counts} == {"-1", "1"}
        missing = [[name, n] for name, n in counts if name.casefold() in NO_CLASS and not is_sign]
        return {
            "n": self._rows,
            "classes": len(counts),
            "closed": closed,
            "counts": [[name, n] for name, n in counts[:SHOWN]],
            "rare": [[name, n] for name, n in counts if n < FEW][:SHOWN],
            "num_rare": sum(n < FEW for _, n in counts),
            "ratio": counts[0][1] / counts[-1][1] if counts else 1.0,
            "spellings": [[[x, self._counts[x]] for x in names] for names in groups.values() if len(names) > 1],
            "missing": missing,
        }
