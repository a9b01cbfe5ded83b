"""A conversation, or a prompt and its completion.

prompt/completion   {"prompt": ..., "completion": ...}            also question/answer, input/output, query/response
messages            {"messages": [{"role": ..., "content": ...}]}
ShareGPT            {"conversations": [{"from": "human", "value": ...}]}
Alpaca              {"instruction": ..., "input": ..., "output": ...}
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import ROLES, Chat, Role, Turn
from weitiao.core.messages import Message
from weitiao.core.registry import nearest
from weitiao.data.columns import ColumnMapping, string

EXAMPLE_TYPE = Chat
OBJECTIVE = "sft"
TARGETS = ("prompt", "completion", "system", "messages")
NOT_FOUND = Message("no columns of a prompt and its completion found")
COLUMNS = "{prompt: ..., completion: ...} or {messages: ...}"
INPUTS = ("prompt",)

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "model": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    mappings: list[ColumnMapping] = []
    if "messages" in first_values:
        mappings.append(ColumnMapping("messages[].role/content", Chat, lambda r: _chat(r, "messages")))
    for key in ("conversations", "conversation"):
        if key in first_values:
            mappings.append(ColumnMapping(f"{key}[].from/value (ShareGPT)", Chat, lambda r, key=key: _chat(r, key)))
    if {"instruction", "output"} <= first_values.keys():
        prompt = "instruction + input" if "input" in first_values else "instruction"
        mappings.append(ColumnMapping(f"{prompt} -> output (Alpaca)", Chat, _alpaca))
    for prompt, completion in PAIRS:
        if {prompt, completion} <= first_values.keys():
            mappings.append(_pair(prompt, completion, "system" if "system" in first_values else None))
    return mappings


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if "messages" in columns:
        key = columns["messages"]
        return ColumnMapping(f"{key}[]", Chat, lambda r: _chat(r, key))
    if {"prompt", "completion"} <= columns.keys():
        return _pair(columns["prompt"], columns["completion"], columns.get("system"))
    return None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """Conversations are answered by generation, not by a head."""
    raise TypeError("a Chat has no inference mapping: its answer is generated")


def _pair(prompt: str, completion: str, system: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> Chat:
        if isinstance(record.get(prompt), list):  # TRL's conversational prompt/completion
            return _chat({"messages": [*record[prompt], *_list(record, completion)]}, "messages")
        first = (Turn("system", string(record, system)),) if system and record.get(system) else ()
        return _checked((*first, Turn("user", string(record, prompt)), Turn("assistant", string(record, completion))))

    optional = f", system: {system}" if system else ""
    return ColumnMapping(f"{prompt} -> {completion}{optional}", Chat, make)


def _alpaca(record: dict[str, Any]) -> Chat:
    instruction, more = string(record, "instruction"), record.get("input") or ""
    turns: list[Turn] = [Turn("system", str(record["system"]))] if record.get("system") else []
    for pair in record.get("history") or []:
        turns += [Turn("user", str(pair[0])), Turn("assistant", str(pair[1]))]
    turns += [Turn("user", f"{instruction}\n{more}" if more else instruction)]
    return _checked((*turns, Turn("assistant", string(record, "output"))))


def _chat(record: dict[str, Any], key: str) -> Chat:
    turns: list[Turn] = []
    for i, message in enumerate(_list(record, key)):
        if not isinstance(message, dict):
            raise InvalidValue("{key}[{i}] is not an object", key=key, i=i)
        speaker = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = SPEAKERS.get(str(speaker).lower())
        if role is None:
            raise InvalidValue(
                "{key}[{i}]: unknown role {role!r}.{hint} Roles are: {known}",
                key=key,
                i=i,
                role=speaker,
                hint=nearest(str(speaker), ROLES),
                known=", ".join(ROLES),
            )
        if not isinstance(content, str):
            raise InvalidValue("{key}[{i}]: content is {type}, not text", key=key, i=i, type=type(content).__name__)
        turns.append(Turn(role, content))
    if record.get("system") and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", str(record["system"])))
    return _checked(tuple(turns))


def _checked(turns: tuple[Turn, ...]) -> Chat:
    if not any(turn.role == "assistant" for turn in turns):
        raise InvalidValue("there is no assistant turn, so there is nothing to train on")
    for turn in turns:
        if turn.role == "assistant" and not turn.content.strip():
            raise InvalidValue("the answer is empty")
    return Chat(turns)


def _list(record: dict[str, Any], key: str) -> list:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise InvalidValue("{key!r} is missing or not a list of turns", key=key)
    return value
