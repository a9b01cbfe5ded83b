"""Share of rows whose most probable answer, out of a closed set, is the reference, to the letter; of several classes, all.

Each possible answer is scored by the summed log-probability of its tokens and of the stop token, so that a short answer
which is a prefix of a longer one has no advantage. Nothing is generated, so a model that knows the answer but wraps it in
chat is not penalised: the fairest measure of an untuned model.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric


class Accuracy(RowMetric):
    """Share of rows whose most probable answer is the reference."""

    reads: ClassVar[Reads] = "choices"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(chosen, reference) of each row -> 1 where they are equal."""
        return [float(_classes(chosen) == _classes(reference)) for chosen, reference in pairs]


def _classes(answer: Any) -> Any:
    """Several classes have no order."""
    return answer if isinstance(answer, str) else frozenset(answer)
