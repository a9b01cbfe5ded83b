"""A conversation, or a question and its answer.

prompt/completion   {"prompt": ..., "completion": ...}            also question/answer, input/output, query/response
messages            {"messages": [{"role": ..., "content": ...}]}
ShareGPT            {"conversations": [{"from": "human", "value": ...}]}
Alpaca              {"instruction": ..., "input": ..., "output": ...}
"""

from typing import Any

from weitiao.core.example import ROLES, Chat, Turn
from weitiao.core.registry import nearest
from weitiao.data.columns import ColumnMapping, string

MAKES = Chat
PURPOSE = "sft"
TARGETS = ("prompt", "completion", "system", "messages")
LACKING = "no question and answer found"
NEEDS = "{prompt: ..., completion: ...} or {messages: ...}"
INPUTS = ("prompt",)

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "model": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip


def infer_columns(seen: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    found: list[ColumnMapping] = []
    if "messages" in seen:
        found.append(ColumnMapping("messages[].role/content (chat messages)", Chat, lambda r: _chat(r, "messages")))
    for key in ("conversations", "conversation"):
        if key in seen:
            found.append(ColumnMapping(f"{key}[].from/value (ShareGPT)", Chat, lambda r, key=key: _chat(r, key)))
    if {"instruction", "output"} <= seen.keys():
        more = " + input" if "input" in seen else ""
        found.append(ColumnMapping(f"instruction{more} -> output (Alpaca)", Chat, _alpaca))
    for ask, say in PAIRS:
        if {ask, say} <= seen.keys():
            found.append(_pair(ask, say, "system" if "system" in seen else None))
    return found


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the user describes."""
    if "messages" in columns:
        key = columns["messages"]
        return ColumnMapping(f"{key}[] (as given)", Chat, lambda r: _chat(r, key))
    if {"prompt", "completion"} <= columns.keys():
        return _pair(columns["prompt"], columns["completion"], columns.get("system"))
    return None


def for_inference(columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None:
    """Conversations are answered by writing, not by a head."""
    raise TypeError("Chat is answered by writing")


def _pair(ask: str, say: str, system: str | None) -> ColumnMapping:
    def make(record: dict[str, Any]) -> Chat:
        if isinstance(record.get(ask), list):  # TRL's conversational prompt/completion
            return _chat({"messages": [*record[ask], *_list(record, say)]}, "messages")
        first = (Turn("system", string(record, system)),) if system and record.get(system) else ()
        return _checked((*first, Turn("user", string(record, ask)), Turn("assistant", string(record, say))))

    return ColumnMapping(f"{ask} -> {say}" + (f", system: {system}" if system else ""), Chat, make)


def _alpaca(record: dict[str, Any]) -> Chat:
    ask, more = string(record, "instruction"), record.get("input") or ""
    turns: list[Turn] = [Turn("system", str(record["system"]))] if record.get("system") else []
    for pair in record.get("history") or []:
        turns += [Turn("user", str(pair[0])), Turn("assistant", str(pair[1]))]
    turns += [Turn("user", f"{ask}\n{more}" if more else ask), Turn("assistant", string(record, "output"))]
    return _checked(tuple(turns))


def _chat(record: dict[str, Any], key: str) -> Chat:
    turns: list[Turn] = []
    for i, said in enumerate(_list(record, key)):
        if not isinstance(said, dict):
            raise ValueError(f"{key}[{i}] is not an object")
        who = said.get("role", said.get("from"))
        words = said.get("content", said.get("value"))
        role = SPEAKERS.get(str(who).lower())
        if role is None:
            raise ValueError(f"{key}[{i}]: unknown role {who!r}.{nearest(str(who), ROLES)} Roles are: {', '.join(ROLES)}")
        if not isinstance(words, str):
            raise ValueError(f"{key}[{i}]: content is {type(words).__name__}, not text")
        turns.append(Turn(role, words))  # pyright: ignore[reportArgumentType]
    if record.get("system") and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", str(record["system"])))
    return _checked(tuple(turns))


def _checked(turns: tuple[Turn, ...]) -> Chat:
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("there is no assistant turn, so nothing to learn")
    for turn in turns:
        if turn.role == "assistant" and not turn.content.strip():
            raise ValueError("the answer is empty")
    return Chat(turns)


def _list(record: dict[str, Any], key: str) -> list:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key!r} is missing or not a list of turns")
    return value
