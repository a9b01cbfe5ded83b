"""What belongs beside a value: how many rows of how many, and whether the answers were cut off."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.eval_set import MAX_ANSWERS, EvalSet
from weitiao.core.messages import Message, joined
from weitiao.core.objective import Objective
from weitiao.core.processor import Processor
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel

SHOWN_REASONS = 3
NO_CHOICES = Message(
    "not measured: the references are no closed set of answers (2 to {most} different ones, short, each three times on "
    "average)",
    most=MAX_ANSWERS,
)


def annotated(
    score: Score, reads: str, pairs: Sequence[Any], eval_set: EvalSet, model: TrainableModel, objective: Objective
) -> Score:
    """The score with the number of rows that were left out, and notes.

    Args:
        reads: what the metric reads; of answers and choices, `pairs` has one for each row that was measured.
    """
    if not score.n:
        choosing = reads in ("choices", "probabilities") and not pairs
        return replace(score, notes=(*score.notes, NO_CHOICES)) if choosing and eval_set.examples else score
    num_examples = len(eval_set.examples)
    of_rows = reads in ("row_losses", "row_bytes", "rankings")
    beyond_limit = 0 if of_rows else num_examples - len(pairs)
    notes = list(score.notes)
    if score.clusters and eval_set.groups:
        notes.append(Message("rows belong to {n:,} groups (column group): intervals are over groups", n=score.clusters))
    if eval_set.unused:
        notes.append(unused_note(eval_set))
    if beyond_limit:
        notes.append(Message("evaluate.limit: answers are measured on the first {n:,} of {total:,} rows", n=len(pairs),
                             total=num_examples))  # fmt: skip
    if reads == "answers" and (note := cut_note(pairs, model.processor, objective)) is not None:
        notes.append(note)
    return replace(score, left_out=beyond_limit + sum(eval_set.unused.values()), notes=tuple(notes))


def unused_note(eval_set: EvalSet) -> Message:
    """'30 of 100 rows were measured; 40: the text is empty; 30: the class 'phish' is not one of ...'."""
    n, unused = len(eval_set.examples), sorted(eval_set.unused.items(), key=lambda pair: -pair[1])
    reasons = [Message("{n:,}: {reason}", n=count, reason=reason) for reason, count in unused[:SHOWN_REASONS]]
    if more := sum(count for _, count in unused[SHOWN_REASONS:]):
        reasons.append(Message("{n:,} for other reasons", n=more))
    return Message(
        "{n:,} of {total:,} rows were measured; {reasons}",
        n=n,
        total=n + sum(eval_set.unused.values()),
        reasons=joined("; ", reasons),
    )


def cut_note(pairs: Sequence[tuple[Any, Any]], processor: Processor, objective: Objective) -> Message | None:
    """That generated answers were cut where references go on; None: the value is not the limit's."""
    rooms = [room for answer, _ in pairs if (room := getattr(answer, "cut_at", None)) is not None]
    if not rooms:
        return None
    room = max(rooms)
    longer = sum(num_tokens(str(reference), processor) > room for _, reference in pairs)
    if not longer:  # the model goes on where no reference does: that is its own mistake, and the value says so
        return None
    return Message(
        "{n:,} of {total:,} answers were cut at {room:,} tokens; {longer:,} references are longer ({key})",
        n=len(rooms),
        total=len(pairs),
        room=room,
        longer=longer,
        key="objective.max_new_tokens" if objective.traits.needs_encoder_decoder else "evaluate.max_new_tokens",
    )


def num_tokens(text: str, processor: Processor) -> int:
    """Tokens of a text, without special tokens around it."""
    return len(processor.text(text)) - len(processor.text(""))
