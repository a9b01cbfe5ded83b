"""A file of prompts: JSON lines that say what is asked and, where there are several, which adapter answers.

{"prompt": "Hello", "adapter": "chat"}
{"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}], "adapter": "spam", "id": 7}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.example import ROLES, BadRow, Turn
from weitiao.core.registry import find_module, nearest
from weitiao.data.records import Reader


@dataclass(frozen=True)
class Asked:
    """One prompt."""

    turns: tuple[Turn, ...]
    adapter: str
    """"" is the base."""
    fields: dict[str, Any]
    """The whole line, so that it can be given back with its answer."""


def read_prompts(file: str, system: str | None = None, adapters: Sequence[str] = ()) -> list[Asked]:
    """Every line; a prompt that is not understood stops here, for each is to get an answer.

    Args:
        system: a system message before each `prompt`.
        adapters: the names there are.

    Raises:
        DataError: there is no such file, or a line is not of this kind.
    """
    if not Path(file).is_file():
        raise DataError(f"--prompts: there is no file {file}.")
    found = []
    for record in find_module(Reader, "jsonl").read(Path(file), "auto"):
        if isinstance(record, BadRow):
            raise DataError(f"{record.where}: {record.reason}.")
        try:
            found.append(_asked(record.fields, system, adapters))
        except ValueError as error:
            raise DataError(f"{record.where}: {error}.") from None
    if not found:
        raise DataError(f"--prompts: {file} holds no prompt.")
    return found


def _asked(fields: dict[str, Any], system: str | None, adapters: Sequence[str]) -> Asked:
    name = fields.get("adapter") or ""
    if name and name not in adapters:
        there = f"{nearest(str(name), adapters)} There are: {', '.join(adapters)}" if adapters else " None is open"
        raise ValueError(f"there is no adapter called {name!r}.{there}")
    if ("prompt" in fields) == ("messages" in fields):
        raise ValueError(f"a line needs prompt or messages (one of them); it has: {', '.join(fields) or 'nothing'}")
    if "prompt" in fields:
        if not isinstance(fields["prompt"], str):
            raise ValueError("prompt is not a string")
        before = (Turn("system", system),) if system else ()
        return Asked((*before, Turn("user", fields["prompt"])), name, fields)
    turns = fields["messages"]
    right = isinstance(turns, list) and all(
        isinstance(x, dict) and x.get("role") in ROLES and isinstance(x.get("content"), str) for x in turns
    )
    if not right or not turns:
        raise ValueError(f"messages is a list of {{role, content}}, role one of {', '.join(ROLES)}")
    return Asked(tuple(Turn(x["role"], x["content"]) for x in turns), name, fields)
