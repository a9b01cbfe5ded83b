"""Personal data and secrets: how many rows have some of each kind, and masked examples. No value is kept."""

from collections import defaultdict
from typing import Any

from weitiao.data.inspection.excerpts import around
from weitiao.data.inspection.occurrences import EXAMPLES, Occurrences
from weitiao.data.inspection.row_store import RowBatch
from weitiao.data.personal_data.search import find_personal

SECRETS = "api_key"


class PersonalData:
    """Rows with personal data, by kind."""

    def __init__(self) -> None:
        self._rows = {True: Occurrences(), False: Occurrences()}  # of certain ones: secrets, others
        self._kinds: dict[tuple[str, bool], Occurrences] = defaultdict(Occurrences)
        self._examples: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def add(self, batch: RowBatch) -> None:
        """Look through a batch."""
        for i, x in enumerate(batch.rows):
            text = f"{x.more}\n{x.prompt}\n{x.answer}" if x.more else f"{x.prompt}\n{x.answer}"
            spans = find_personal(text)
            if not spans:
                continue
            row = batch.first + i
            for kind, certain in {(y.kind, y.certain) for y in spans}:
                self._kinds[kind, certain].add(row)
            for is_secret in {y.kind == SECRETS for y in spans if y.certain}:
                self._rows[is_secret].add(row)
            for y in spans:
                examples = self._examples[y.kind]
                if y.certain and len(examples) < EXAMPLES and (not examples or examples[-1][0] != row):
                    examples.append((row, around(text, y.start, y.end)))

    def result(self) -> dict[str, Any]:
        """{secrets, personal: rows with some for sure; kinds: [{kind, certain, rows, examples: [[row, masked]]}]}."""
        kinds = [
            {"kind": kind, "certain": certain, "rows": x.rows, "examples": self._examples[kind] if certain else []}
            for (kind, certain), x in sorted(self._kinds.items(), key=lambda y: (not y[0][1], -y[1].rows, y[0][0]))
        ]
        return {"secrets": self._rows[True], "personal": self._rows[False], "kinds": kinds}
