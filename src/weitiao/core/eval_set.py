"""EvalSet: rows that are never learnt from, in words and encoded. Made by data, measured on by evaluate."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from weitiao.core.batch import Batch
from weitiao.core.example import Chat, Example

MOST_ANSWERS = 64  # more different answers than this are no closed set


@dataclass(frozen=True)
class EvalSet:
    """What a model is measured on."""

    examples: Sequence[Example]
    batches: Callable[[], Iterable[Batch]]
    """Makes the encoded rows' batches anew, for losses."""
    example_of: Callable[[int], Example]
    """An encoded row's number (`Batch.source`) -> the example it was made of."""
    tasks: dict[str, "EvalSet"] = field(default_factory=dict)
    """Of several tasks, each one's rows."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The different answers, if they are few, short and come again and again (routing, classifying); else ()."""
        counts = Counter(x.answer for x in self.examples if isinstance(x, Chat))
        closed = 2 <= len(counts) <= MOST_ANSWERS and sum(counts.values()) >= 3 * len(counts)
        return tuple(sorted(counts)) if closed and all(len(a) <= 60 for a in counts) else ()
