"""A prompt as a model gets it: a conversation in the chat template it was trained with, or the beginning of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weitiao.core.errors import DataError, InvalidValue, ModelError
from weitiao.core.example import ROLES, Chat, SourcedExample, Turn
from weitiao.core.processor import Processor
from weitiao.data.chat.drop_turns import Kept, keep_last
from weitiao.data.chat.exchanges import exchanges
from weitiao.data.chat.turns import read_tools, read_turns
from weitiao.pipeline.load import BaseAssets

Messages = Sequence[Mapping[str, Any]]
"""Messages: [{"role": "user", "content": "Hello"}]."""
PROMPT = 0.75  # share of the room that a prompt may have, however long the answer may become
OVERLONG = ("auto", "error", "drop_turns")


class PromptIds(list[int]):
    """Token ids of a prompt."""

    dropped: tuple[int, ...] = ()
    """Which messages are not in it, counted from 0, because the conversation was too long."""


@dataclass(frozen=True)
class Room:
    """How long a prompt may be, and what is done with a longer one."""

    new_tokens: int = 0
    """Tokens that the answer may have."""
    overlong: str = "auto"
    """error: it is passed on as it is, and refused where the model has no room for it; drop_turns: whole exchanges of the
    conversation are left out, as `overlong: drop_turns` does in training; auto: as the run was trained."""


def encode_prompt(
    assets: BaseAssets, turns: Sequence[Turn], system: str | None, tools: Any, room: Room = Room()
) -> PromptIds:
    """Token ids of a prompt.

    Args:
        system: a system message, if the turns have none; None: that of the training rows.
        tools: that the assistant may call, as a list or its JSON.

    Raises:
        DataError: it is not a prompt for this model, or not even its last exchange fits.
    """
    try:
        if assets.continues_text:
            return PromptIds(_encode_beginning(assets.processor, turns, system))
        system = assets.system if system is None else system
        opening = (Turn("system", system),) if system and turns[0].role != "system" else ()
        conversation, tools = (*opening, *turns), read_tools(tools)
        limit = history_limit(assets, room.overlong)
        if limit is None:
            return PromptIds(assets.processor.prompt(conversation, tools))
        kept = fit_conversation(assets.processor, conversation, tools, max(limit - room.new_tokens, int(PROMPT * limit)))
        ids = PromptIds(assets.processor.prompt([conversation[i] for i in kept.turns], tools))
        ids.dropped = tuple(sorted(i - len(opening) for i, _ in kept.dropped))
        return ids
    except InvalidValue as error:
        raise DataError(error.message) from None


def history_limit(assets: BaseAssets, overlong: str) -> int | None:
    """Tokens that a conversation and its answer may have before exchanges are left out; None: none are.

    Raises:
        ModelError: there is no such choice.
    """
    if overlong not in OVERLONG:
        raise ModelError("overlong: there is no {value!r}; there are: {known}", value=overlong, known=", ".join(OVERLONG))
    if overlong == "error":
        return None
    return assets.history_tokens or (assets.max_length if overlong == "drop_turns" else None)


def fit_conversation(processor: Processor, turns: Sequence[Turn], tools: str, limit: int) -> Kept:
    """What of a conversation the model is asked with.

    Args:
        limit: tokens of the prompt.

    Raises:
        InvalidValue: not even the last exchange fits.
    """

    def size(some: Sequence[Turn]) -> int:
        return processor.num_tokens(some, tools, ask=True)

    kept = keep_last(turns, size, limit)
    if kept is None:
        last = set(exchanges(turns)[-1]) if exchanges(turns) else set[int]()
        least = [turn for i, turn in enumerate(turns) if i in last or turn.role == "system"]
        raise InvalidValue(
            "the last message is too long: with its exchange, the system message and the tools it has {size:,} tokens, "
            "and a prompt may have {limit:,} here",
            size=size(least),
            limit=limit,
        )
    return kept


def with_system_message(examples: Sequence[SourcedExample], system: str) -> tuple[list[SourcedExample], int]:
    """Conversations with a system message where they have none; and how many had none."""
    lacking = [isinstance(x.example, Chat) and not x.example.system for x in examples]
    opening = Turn("system", system)
    changed = [
        replace(x, example=replace(x.example, turns=(opening, *x.example.turns)))
        if lacks and isinstance(x.example, Chat)
        else x
        for x, lacks in zip(examples, lacking)
    ]
    return changed, sum(lacking)


def _encode_beginning(processor: Processor, turns: Sequence[Turn], system: str | None) -> list[int]:
    """A text that is to be continued, without the end-of-text token that some tokenizers add."""
    if system or len(turns) != 1 or turns[0].role != "user":
        raise DataError(
            "this model was trained on plain text (objective: causal_lm), which it continues: give the beginning of a "
            "text, without messages or a system message"
        )
    if not turns[0].content:
        raise DataError("the text to continue is empty")
    ids = processor.text(turns[0].content)
    return ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_id else ids


def as_turns(prompt: str | Messages) -> tuple[Turn, ...]:
    """A prompt as turns of a conversation."""
    if isinstance(prompt, str):
        return (Turn("user", prompt),)
    messages: list[Any] = [dict(x) if isinstance(x, Mapping) else x for x in prompt]
    valid = all(isinstance(x, dict) and x.get("role") in ROLES for x in messages)
    try:
        turns = tuple(read_turns(messages, "messages")) if messages and valid else ()
    except InvalidValue:
        turns = ()
    if not turns:
        raise DataError(
            "a prompt is a string, or a list of {{role, content}} with role one of {roles}.", roles=", ".join(ROLES)
        )
    return turns
