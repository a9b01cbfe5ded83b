"""Fixed answers to questions out of scope: which rows want one, and which answers are one.

Rows that want it have it in their column `refusal`; the other rows of the same evaluation are in scope. An answer is a
refusal only if it is that sentence (letter case, character width and spaces are ignored), whatever else it may say.
"""

from collections.abc import Sequence

from weitiao.core.errors import DataError
from weitiao.core.example import plain
from weitiao.core.score import Clusters, Score, mean_of_rows

Rows = Sequence[tuple[str, str]]
"""(generated, what the column `refusal` holds, or "") of each row."""


def refused(name: str, rows: Rows, clusters: Clusters, out_of_scope: bool) -> Score:
    """The share of refusals among the rows out of scope, or among those in scope.

    Raises:
        DataError: no row has a fixed answer.
    """
    sentences = {plain(cell) for _, cell in rows if cell}
    if rows and not sentences:
        raise DataError(
            "evaluate.metrics: {metric} reads a column refusal (the fixed answer) of the rows out of scope, and no row "
            "has one",
            metric=name,
        )
    asked = [i for i, (_, cell) in enumerate(rows) if bool(cell) == out_of_scope]
    hits = [plain(rows[i][0]) == plain(rows[i][1]) if out_of_scope else plain(rows[i][0]) in sentences for i in asked]
    own = [clusters[i] for i in asked] if clusters else ()
    return mean_of_rows(name, [float(x) for x in hits], own, out_of_scope)
