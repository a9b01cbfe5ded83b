"""Share of rows whose most probable answer, among all answers there are, is the reference.

For routing and classifying by text: each possible answer is scored by the summed log-probability of its tokens and of
the stop token, so that a short answer which is the beginning of a longer one has no advantage. Nothing is written
freely, so a model that knows the answer but chats around it is not punished: the fairest view of an untuned model.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score, proportion


class Accuracy(Metric):
    """Share of rows whose most probable answer is the reference."""

    reads: ClassVar[str] = "choices"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(chosen, reference) of each row."""
        return proportion(self.name, sum(chosen == wanted for chosen, wanted in pairs), len(pairs))
