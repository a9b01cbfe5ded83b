"""What an exam found: a Score, and each item, so that two models can be compared item by item."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from weitiao.core.exam import Exam
from weitiao.core.messages import Message
from weitiao.core.score import Score, proportion
from weitiao.evaluate.examination.items import ExamItem

SHOWN_ITEMS = 5


@dataclass(frozen=True)
class ItemResult:
    """One item as it was answered."""

    id: str
    chosen: int
    """The number of the option that was chosen; -1: none can be read from the answer."""
    solution: int
    """The number of the right option; -1 where the answer is free."""
    correct: bool
    logprobs: tuple[float, ...] = ()
    """The log-probability of each option."""
    lengths: tuple[int, ...] = ()
    """The tokens of each option."""
    text: str = ""
    """What was generated."""
    contaminated: bool = False
    """The training data contain the question."""

    def as_json(self) -> dict[str, Any]:
        """As a line of JSON; without what does not apply."""
        values = asdict(self)
        return {key: x for key, x in values.items() if x not in ((), "") and (key, x) != ("contaminated", False)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ItemResult":
        """The result of a line of JSON; other keys are ignored."""
        values = {key: x for key, x in record.items() if key in cls.__dataclass_fields__}
        lists = {key: tuple(values[key]) for key in ("logprobs", "lengths") if key in values}
        return cls(**{**values, **lists})


@dataclass(frozen=True)
class ExamResult:
    """The results of one exam."""

    name: str
    score: Score
    """Named exam.<name>: the fraction of right answers."""
    items: tuple[ItemResult, ...]
    chance: float
    """What guessing would get; 0 for free answers."""
    too_long: tuple[str, ...] = ()
    """Items that do not fit into the model's context."""
    contaminated: tuple[str, ...] = ()
    """Items that the training data contain."""

    def as_lines(self) -> list[dict[str, Any]]:
        """The items as JSON, each with the exam's name."""
        return [{"exam": self.name, **x.as_json()} for x in self.items]


def exam_result(
    exam: Exam, items: Sequence[ExamItem], results: Sequence[ItemResult], too_long: Sequence[str] = ()
) -> ExamResult:
    """The result of an exam.

    Args:
        items: those that were asked, with those that are too long.
    """
    name = f"exam.{exam.name}"
    measured = {x.id for x in results}
    shares = [1 / len(x.options) for x in items if x.options and x.id in measured]
    chance = sum(shares) / len(shares) if shares else 0.0
    score = proportion(name, sum(x.correct for x in results), len(results))
    notes = []
    if score.n and chance and score.low <= chance:
        facts = {"exam": exam.name, "chance": 100 * chance}
        notes.append(Message("exam {exam}: not better than guessing ({chance:.0f} %)", **facts))
    if too_long:
        notes.append(
            Message(
                "exam {exam}: {n:,} items are longer than the model's context and were not asked: {items}",
                exam=exam.name,
                n=len(too_long),
                items=shown_ids(too_long),
            )
        )
    score = replace(score, left_out=len(too_long), notes=tuple(notes))
    return ExamResult(exam.name, score, tuple(results), chance, tuple(too_long))


def shown_ids(ids: Sequence[str]) -> str:
    """The first ids: "12, 40, 41 ..."."""
    return ", ".join(ids[:SHOWN_ITEMS]) + (" ..." if len(ids) > SHOWN_ITEMS else "")


def with_contamination(result: ExamResult, found: Sequence[str]) -> ExamResult:
    """The result, with the items that the training data contain named, and the score without them."""
    asked = {x.id for x in result.items}
    ids = [x for x in found if x in asked]
    if not ids:
        return result
    others = [x.correct for x in result.items if x.id not in set(ids)]
    note = Message(
        "exam {exam}: the training data contain {n:,} of its {total:,} questions ({items}); without them: {score}",
        exam=result.name,
        n=len(ids),
        total=len(result.items),
        items=shown_ids(ids),
        score=str(proportion(result.score.name, sum(others), len(others))),
    )
    score = replace(result.score, notes=(*result.score.notes, note))
    items = tuple(replace(x, contaminated=x.id in set(ids)) for x in result.items)
    return replace(result, score=score, items=items, contaminated=tuple(ids))
