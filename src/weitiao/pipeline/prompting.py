"""A prompt as a model gets it: a conversation in the chat template it was trained with, or the beginning of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import ROLES, Chat, SourcedExample, Turn
from weitiao.core.processor import Processor
from weitiao.data.chat.turns import read_tools, read_turns
from weitiao.pipeline.load import BaseAssets

Messages = Sequence[Mapping[str, Any]]
"""Messages: [{"role": "user", "content": "Hello"}]."""


def encode_prompt(assets: BaseAssets, turns: Sequence[Turn], system: str | None, tools: Any) -> list[int]:
    """Token ids of a prompt.

    Args:
        system: a system message, if the turns have none; None: that of the training rows.
        tools: that the assistant may call, as a list or its JSON.

    Raises:
        DataError: it is not a prompt for this model.
    """
    try:
        if assets.continues_text:
            return _encode_beginning(assets.processor, turns, system)
        system = assets.system if system is None else system
        opening = (Turn("system", system),) if system and turns[0].role != "system" else ()
        return assets.processor.prompt((*opening, *turns), read_tools(tools))
    except InvalidValue as error:
        raise DataError(error.message) from None


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
