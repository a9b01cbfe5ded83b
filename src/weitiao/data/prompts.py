"""A file of prompts: JSON lines with a prompt and, where several adapters are loaded, the adapter that answers.

{"prompt": "Hello", "adapter": "chat"}
{"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}], "adapter": "spam", "id": 7}
{"messages": [...], "tools": [{"type": "function", "function": {...}}]}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import ROLES, BadRow, SourceLocation, Turn
from weitiao.core.registry import find_module
from weitiao.data.chat.turns import read_turns
from weitiao.data.records import Reader


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    turns: tuple[Turn, ...]
    adapter: str
    """The adapter's name; "" is the base model."""
    fields: dict[str, Any]
    """The whole line, which is written again with its answer."""
    where: SourceLocation


def read_prompts(file: str, adapters: Sequence[str] = ()) -> list[Prompt]:
    """All prompts of a file. One unusable line is an error, because every prompt must get an answer.

    Args:
        adapters: names of the loaded adapters.

    Raises:
        DataError: there is no such file, or a line is not a prompt.
    """
    if not Path(file).is_file():
        raise DataError("--prompts: there is no file {file}", file=file)
    prompts: list[Prompt] = []
    for record in find_module(Reader, "jsonl").read(Path(file), "auto"):
        if isinstance(record, BadRow):
            raise DataError("{where}: {reason}", where=record.where, reason=record.reason)
        try:
            prompts.append(_parse(record.fields, record.where, adapters))
        except InvalidValue as error:
            raise DataError("{where}: {reason}", where=record.where, reason=error.message) from None
    if not prompts:
        raise DataError("--prompts: {file} has no prompt", file=file)
    return prompts


def _parse(fields: dict[str, Any], where: SourceLocation, adapters: Sequence[str]) -> Prompt:
    name = fields.get("adapter") or ""
    if name and name not in adapters:
        if not adapters:
            raise InvalidValue("there is no adapter called {name!r}; no adapter is loaded", name=name)
        raise InvalidValue(
            "there is no adapter called {name!r}. Loaded are: {adapters}", name=name, adapters=", ".join(adapters)
        )
    if ("prompt" in fields) == ("messages" in fields):
        raise InvalidValue("a line needs either prompt or messages; it has: {keys}", keys=", ".join(fields) or "-")
    if "prompt" in fields:
        if not isinstance(fields["prompt"], str):
            raise InvalidValue("prompt is not a string")
        return Prompt((Turn("user", fields["prompt"]),), name, fields, where)
    turns = fields["messages"]
    valid = isinstance(turns, list) and all(isinstance(x, dict) and x.get("role") in ROLES for x in turns)
    if not valid or not turns:
        raise InvalidValue("messages must be a list of role and content, with role one of {roles}", roles=", ".join(ROLES))
    return Prompt(tuple(read_turns(turns, "messages")), name, fields, where)
