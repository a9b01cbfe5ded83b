"""Words of an answer; the mean over rows. Neither more nor fewer are better. Words: evaluate/words.py."""

from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.words import split_words


class AnswerLength(RowMetric):
    """Mean number of words of an answer."""

    reads: ClassVar[Reads] = "answers"
    higher_is_better: ClassVar[bool | None] = None

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row; references are not read."""
        return [float(len(split_words(str(text)))) for text, _ in pairs]
