"""How long a generated answer may be: as long as the references, so that a value is the model's and not the limit's."""

from collections.abc import Sequence

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, SourceTarget
from weitiao.core.finding import Decision, Finding
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.objective import Objective
from weitiao.core.processor import Processor
from weitiao.core.recipe_sections import Evaluate
from weitiao.core.registry import find
from weitiao.evaluate.annotate import num_tokens

MIN_ROOM, MAX_ROOM = 64, 512  # tokens; what auto chooses between


def reference_lengths(eval_sets: Sequence[EvalSet | None], processor: Processor, limit: int | None) -> list[int]:
    """Tokens of each reference that generated answers are compared with.

    Args:
        limit: the number of rows that answers are generated for; None: all.
    """
    parts = [part for x in eval_sets if x is not None for part in (x.tasks or {"": x}).values()]
    rows = [x for part in parts for x in part.examples[:limit]]
    return [num_tokens(x.answer, processor) for x in rows if isinstance(x, (Chat, SourceTarget))]


def generates(objective: Objective) -> bool:
    """Whether its answers are generated text."""
    traits = objective.traits
    return traits.needs_encoder_decoder or (traits.generative and not traits.has_predict)


def answer_room(settings: Evaluate, lengths: Sequence[int]) -> Decision:
    """The maximum length of a generated answer in tokens.

    Args:
        lengths: of the references.
    """
    if settings.max_new_tokens != "auto":
        return Decision.from_recipe("evaluate.max_new_tokens", settings.max_new_tokens)
    if not lengths:
        return Decision("evaluate.max_new_tokens", MIN_ROOM, Message("no reference to measure"))
    longest = max(lengths) + 1  # and the stop token
    return Decision(
        "evaluate.max_new_tokens",
        max(MIN_ROOM, min(MAX_ROOM, longest)),
        Message(
            "the longest reference with its stop token has {n:,} tokens; {low} to {high}",
            n=longest,
            low=MIN_ROOM,
            high=MAX_ROOM,
        ),
    )


def room_finding(objective: Objective, metrics: Sequence[str], room: int, lengths: Sequence[int]) -> Finding | None:
    """A warning where right answers would be cut off; None: none would, or nothing is generated.

    Args:
        metrics: those that are measured.
        room: tokens that an answer may have.
    """
    if not generates(objective) or not any(find(Metric, name.rpartition(".")[2]).reads == "answers" for name in metrics):
        return None
    longer = sum(n > room for n in lengths)
    if not longer:
        return None
    message = Message(
        "{n:,} of {total:,} references are longer than the {room:,} tokens that an answer may have: right answers are cut "
        "off and count as wrong. Set a larger {key} (the longest needs {longest:,})",
        n=longer,
        total=len(lengths),
        room=room,
        key="objective.max_new_tokens" if objective.traits.needs_encoder_decoder else "evaluate.max_new_tokens",
        longest=max(lengths) + 1,
    )
    return Finding("answer_room", "warning", message)
