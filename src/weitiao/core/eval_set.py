"""EvalSet: held-out rows as examples and encoded. Created by data, used by evaluate."""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from weitiao.core.batch import Batch
from weitiao.core.example import Chat, Example, SourceLocation
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
    locations: Sequence[tuple[int, SourceLocation]] = ()
    """Of each example, its source and where its row was read: the example itself may have been shortened."""
    corpus: "EvalSet | None" = None
    """Further documents that the queries are searched among."""
    tasks: dict[str, "EvalSet"] = field(default_factory=dict)
    """By task, if there are several."""
    unused: Mapping[Message, int] = field(default_factory=dict)
    """Rows that were to be measured too and cannot be: why -> how many."""

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """Of the examples of each task ("" where there are none), in order."""
        return {name: [row_fingerprint(x) for x in part.examples] for name, part in (self.tasks or {"": self}).items()}

    @property
    def groups(self) -> tuple[Hashable, ...]:
        """The group of each example, by the column `group`; a row without one is a group of its own. (): no row has one."""
        names = [x.get("group") for x in self.columns]
        return tuple(i if name is None else name for i, name in enumerate(names)) if any(names) else ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers, if they are a closed set; else ()."""
        return closed_set([x.answer for x in self.examples if isinstance(x, Chat)])


def row_fingerprint(example: Example) -> str:
    """What says that two models were measured on the same row: its input and its reference, whatever form they have."""
    text = f"{example.input_text}\0{example.answer}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def closed_set(answers: Sequence[str]) -> tuple[str, ...]:
    """The different answers, if they are few, short and repeated (routing, classification); else ()."""
    counts = Counter(answers)
    closed = 2 <= len(counts) <= MAX_ANSWERS and len(answers) >= 3 * len(counts)
    return tuple(sorted(counts)) if closed and all(len(a) <= MAX_ANSWER_LENGTH for a in counts) else ()
