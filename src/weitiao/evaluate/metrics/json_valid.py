"""Share of answers that are JSON (RFC 8259), from the first character to the last: no code fence, no NaN."""

from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.json_answers import parsed


class JSONValid(RowMetric):
    """Share of answers that are JSON."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row; references are not read."""
        return [float(_is_json(str(text))) for text, _ in pairs]


def _is_json(text: str) -> bool:
    try:
        parsed(text)
    except (ValueError, RecursionError):
        return False
    return True
