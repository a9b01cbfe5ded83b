"""EvalSet: held-out rows as examples and encoded. Created by data, used by evaluate."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from weitiao.core.batch import Batch
from weitiao.core.example import Chat, Example
from weitiao.core.messages import Message

MAX_ANSWERS = 64  # more different answers than this are not a closed set
MAX_ANSWER_LENGTH = 60  # characters


@dataclass(frozen=True)
class EvalSet:
    """The rows that a model is evaluated on."""

    examples: Sequence[Example]
    batches: Callable[[], Sequence[Batch]]
    """The batches of the encoded rows, in order; each is read when it is asked for."""
    example_of: Callable[[int], Example]
    """The id of an encoded row (`Batch.row_ids`) -> its example."""
    columns: Sequence[Mapping[str, str]] = ()
    """Of each example, what its row's columns of EVALUATION_COLUMNS hold; (): none has any."""
    tasks: dict[str, "EvalSet"] = field(default_factory=dict)
    """By task, if there are several."""
    unused: Mapping[Message, int] = field(default_factory=dict)
    """Rows that were to be measured too and cannot be: why -> how many."""

    @property
    def groups(self) -> tuple[Hashable, ...]:
        """The group of each example, by the column `group`; a row without one is a group of its own. (): no row has one."""
        names = [x.get("group") for x in self.columns]
        return tuple(i if name is None else name for i, name in enumerate(names)) if any(names) else ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers, if they are a closed set; else ()."""
        return closed_set([x.answer for x in self.examples if isinstance(x, Chat)])


def closed_set(answers: Sequence[str]) -> tuple[str, ...]:
    """The different answers, if they are few, short and repeated (routing, classification); else ()."""
    counts = Counter(answers)
    closed = 2 <= len(counts) <= MAX_ANSWERS and len(answers) >= 3 * len(counts)
    return tuple(sorted(counts)) if closed and all(len(a) <= MAX_ANSWER_LENGTH for a in counts) else ()
