"""Share of rows whose most probable answer, out of a closed set, is the reference, to the letter; of several classes, all.

Each possible answer is scored by the summed log-probability of its tokens and of the stop token, so that a short answer
which is a prefix of a longer one has no advantage. Nothing is generated, so a model that knows the answer but wraps it in
chat is not penalised: the fairest measure of an untuned model.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion


class Accuracy(Metric):
    """Share of rows whose most probable answer is the reference."""

    reads: ClassVar[str] = "choices"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(chosen, reference) of each row."""
        return proportion(
            self.name, sum(_classes(chosen) == _classes(reference) for chosen, reference in pairs), len(pairs)
        )


def _classes(answer: Any) -> Any:
    """Several classes have no order."""
    return answer if isinstance(answer, str) else frozenset(answer)
