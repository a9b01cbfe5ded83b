"""A prompt as a model gets it: a conversation in the chat template it was trained with, or the beginning of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import ROLES, Chat, SourcedExample, Turn
from weitiao.core.processor import Processor
from weitiao.data.chat.drop_turns import Selection, keep_last
from weitiao.data.chat.exchanges import exchanges
from weitiao.data.chat.turns import read_tools, read_turns
from weitiao.data.tokenization import ChatProcessor, num_tokens
from weitiao.pipeline.load import BaseAssets

Messages = Sequence[Mapping[str, Any]]
"""Messages: [{"role": "user", "content": "Hello"}]."""
PROMPT = 0.75  # share of the room that a prompt may have, however long the answer may become


class PromptIds(list[int]):
    """Token ids of a prompt."""

    dropped: tuple[int, ...] = ()
    """Which messages are not in it, counted from 0, because the conversation was too long."""


def encode_prompt(
    assets: BaseAssets, turns: Sequence[Turn], system: str | None, tools: Any, new_tokens: int = 256
) -> PromptIds:
    """Token ids of a prompt.

    Args:
        system: a system message, if the turns have none; None: that of the training rows.
        tools: that the assistant may call, as a list or its JSON.
        new_tokens: that the answer may have; room is left for them where exchanges are left out.

    Raises:
        DataError: it is not a prompt for this model, or not even its last exchange fits.
    """
    try:
        if assets.continues_text:
            return PromptIds(_encode_beginning(assets.processor, turns, system))
        system = assets.system if system is None else system
        opening = (Turn("system", system),) if system and turns[0].role != "system" else ()
        conversation, tools = (*opening, *turns), read_tools(tools)
        limit = assets.history_tokens
        if limit is None:
            return PromptIds(assets.processor.prompt(conversation, tools))
        selection = fit_conversation(assets.processor, conversation, tools, max(limit - new_tokens, int(PROMPT * limit)))
        ids = PromptIds(assets.processor.prompt([conversation[i] for i in selection.turns], tools))
        ids.dropped = tuple(sorted(i - len(opening) for i, _ in selection.dropped))
        return ids
    except InvalidValue as error:
        raise DataError(error.message) from None


def fit_conversation(processor: ChatProcessor, turns: Sequence[Turn], tools: str, limit: int) -> Selection:
    """What of a conversation the model is asked with.

    Args:
        limit: tokens of the prompt.

    Raises:
        InvalidValue: not even the last exchange fits.
    """

    def size(subset: Sequence[Turn]) -> int:
        return num_tokens(processor, subset, tools, ask=True)

    selection = keep_last(turns, size, limit)
    if selection is None:
        last = set(exchanges(turns)[-1]) if exchanges(turns) else set[int]()
        least = [turn for i, turn in enumerate(turns) if i in last or turn.role == "system"]
        raise InvalidValue(
            "the last message is too long: with its exchange, the system message and the tools it has {size:,} tokens, "
            "and a prompt may have {limit:,} here",
            size=size(least),
            limit=limit,
        )
    return selection


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
