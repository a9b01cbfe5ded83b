"""How many turns conversations have, and in which order they come."""

from collections import Counter
from typing import Any

from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.inspection.row_store import RowBatch


class TurnCounts:
    """Conversations by their number of turns."""

    def __init__(self) -> None:
        self._turns: Counter[int] = Counter()
        self._odd: dict[str, Occurrences] = {}
        self._any = Occurrences()

    def add(self, batch: RowBatch) -> None:
        """Count a batch."""
        self._turns.update(x.turns for x in batch.rows)
        for i, x in enumerate(batch.rows):
            for kind in x.oddities:
                self._odd.setdefault(kind, Occurrences()).add(batch.first + i)
            if x.oddities:
                self._any.add(batch.first + i)

    def result(self) -> dict[str, Any]:
        """{counts: [[turns, rows]], odd: rows whose turns do not alternate, kinds: {turn_order.ODDITIES key: rows}}."""
        kinds = sorted(self._odd.items(), key=lambda x: -x[1].rows)
        return {"counts": sorted(self._turns.items()), "odd": self._any, "kinds": {name: x.rows for name, x in kinds}}
