"""Messages as data files write them -> turns: roles, tool calls, reasoning, and flags that exclude a turn from the loss.

OpenAI          {"role": "assistant", "content": null, "tool_calls": [{"id": ..., "function": {...}}], "weight": 0}
axolotl         {"from": "gpt", "value": ..., "train": false}
ms-swift        {"role": "assistant", "content": ..., "loss": false}, {"role": "tool_call", "content": '{"name": ...}'}
LLaMA-Factory   {"from": "function_call", "value": '{"name": ...}'}, {"from": "observation", "value": ...}
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import ROLES, Chat, Role, ToolCall, Turn
from weitiao.core.registry import nearest
from weitiao.data.json_values import json_kind
from weitiao.data.records import ExcludedRow

SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "model": "assistant", "system": "system", "developer": "system", "tool": "tool",
    "function_call": "assistant", "tool_call": "assistant", "observation": "tool", "tool_response": "tool",
    "function_response": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip
CALLERS = ("function_call", "tool_call")  # roles whose content is a call
FLAGS = ("weight", "train", "training", "loss", "trainable")
TRUTH = {"true": True, "false": False, "1": True, "0": False}
REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
REFUSED = (  # keys that change what a turn says, and that nothing here can honor
    "images", "image", "audio", "audios", "video", "videos", "refusal", "prefix", "rejected", "train_detail",
    "training_detail", "loss_scale", "loss_weight",
)  # fmt: skip
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
READ = {*ROLE_KEYS, *CONTENT_KEYS, *REASONING, *REFUSED, "tool_calls", "function_call"}
PLAIN_KEYS = ({"role", "content"}, {"from", "value"})  # of nearly all messages: nothing else is to be looked for
THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def read_chat(messages: Sequence[Any], key: str, opening: Sequence[Turn] = (), tools: Any = None) -> Chat:
    """A conversation.

    Args:
        messages: as the data have them.
        key: their column, for errors.
        opening: turns before them, unless they begin with a system message.
        tools: a list, or its JSON.

    Raises:
        InvalidValue: a message cannot be read, or nothing in the conversation can be trained on.
    """
    turns = read_turns(messages, key)
    if turns and turns[0].role != "system":
        turns = [*opening, *turns]
    return checked(turns, read_tools(tools))


def read_turns(messages: Sequence[Any], key: str) -> list[Turn]:
    """Messages as turns; calls that have messages of their own are put into the assistant's turn before them.

    Raises:
        InvalidValue: a message cannot be read.
    """
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidValue("{key}[{i}] is not an object", key=key, i=i)
        try:
            turn = _turn(message)
        except InvalidValue as error:
            raise InvalidValue("{key}[{i}]: {problem}", key=key, i=i, problem=error.message) from None
        last = turns[-1] if turns else None
        is_call = _speaker(message) in CALLERS
        if is_call and last and last.role == "assistant" and last.supervised == turn.supervised:
            turns[-1] = replace(last, tool_calls=(*last.tool_calls, *turn.tool_calls))
        else:
            turns.append(turn)
    return turns


def checked(turns: Sequence[Turn], tools: str = "") -> Chat:
    """A conversation with an answer to train on.

    Raises:
        InvalidValue: there is none.
        ExcludedRow: there are, and all are marked as not to be trained on.
    """
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise InvalidValue("there is no assistant turn, so there is nothing to train on")
    if not any(turn.supervised for turn in answers):
        raise ExcludedRow("every assistant turn is marked as not to be trained on ({flags})", flags=", ".join(FLAGS))
    if any(not (turn.content.strip() or turn.tool_calls) for turn in answers if turn.supervised):
        raise InvalidValue("the answer is empty")
    if len(turns) == 1:
        raise InvalidValue("the assistant's turn is the only one: there is no prompt")
    return Chat(tuple(turns), tools)


def read_tools(value: Any) -> str:
    """The tools of a conversation as JSON, each as OpenAI writes it; "" if there are none.

    Raises:
        InvalidValue: they are not a list of objects.
    """
    if _is_empty(value):
        return ""
    tools = _parsed(value)
    tools = [tools] if isinstance(tools, dict) else tools
    tools = [_parsed(x) for x in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(x, dict) for x in tools):
        raise InvalidValue("tools is not a list of tools in JSON")
    wrapped = [x if "function" in x or "name" not in x else {"type": "function", "function": x} for x in tools]
    return json.dumps([_without_nulls(x) for x in wrapped], ensure_ascii=False) if wrapped else ""


def unread_keys(messages: Any) -> Iterator[str]:
    """Names of keys of messages that hold something and that are not read, once for each message."""
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.keys() <= READ:
            continue
        for name in message if isinstance(message, dict) else ():
            speaker = SPEAKERS.get(_speaker(message))
            read_here = (name in FLAGS and speaker == "assistant") or (
                name in ("name", "tool_call_id") and speaker == "tool"
            )
            if not (name in READ or read_here or _is_empty(message[name]) or (name in FLAGS and _is_off(message[name]))):
                yield name


# -- a message ----------------------------------------------------------------------------------------------------------


def _turn(message: dict[str, Any]) -> Turn:
    speaker = _speaker(message)
    if (role := SPEAKERS.get(speaker)) is None:
        named = next((message[x] for x in ROLE_KEYS if x in message), None)
        raise InvalidValue(
            "unknown role {role!r}.{hint} Roles are: {known}",
            role=named,
            hint=nearest(str(named), ROLES),
            known=", ".join(ROLES),
        )
    if message.keys() in PLAIN_KEYS and speaker not in CALLERS:
        content = message.get("content", message.get("value"))
        if isinstance(content, str):
            return Turn(role, content)
    for name in REFUSED:
        if not _is_empty(message.get(name)) and message[name] is not False:
            raise InvalidValue("{name} changes what the turn means, and it cannot be used", name=name)
    content, reasoning = _content(message)
    calls = _calls(message)
    if speaker in CALLERS:
        if match := THOUGHT.fullmatch(content):
            reasoning, content = reasoning or match.group(1).strip(), match.group(2)
        calls, content = [*calls, *_calls_in(content, speaker)], ""
    if calls and role != "assistant":
        raise InvalidValue("tool_calls in a turn of the {role}: only the assistant calls tools", role=role)
    supervised = role != "assistant" or all(_flag(name, message[name]) for name in FLAGS if name in message)
    name, id_ = (str(message.get(x) or "") if role == "tool" else "" for x in ("name", "tool_call_id"))
    return Turn(role, content, supervised, reasoning if role == "assistant" else "", tuple(calls), name, id_)


def _speaker(message: dict[str, Any]) -> str:
    """The role as it is written, in lower case."""
    for key in ROLE_KEYS:
        if (role := message.get(key)) is not None:
            return str(role).strip().lower()
    return ""


def _content(message: dict[str, Any]) -> tuple[str, str]:
    """(content, reasoning) of a message; content may be a list of parts."""
    content = next((message[x] for x in CONTENT_KEYS if message.get(x) is not None), None)
    thoughts = [message[x] for x in REASONING if not _is_empty(message.get(x))]
    if thoughts and not isinstance(thoughts[0], str):
        raise InvalidValue("its reasoning is {type}, not text", type=json_kind(thoughts[0]))
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        content = "\n".join(text for kind, text in parts if kind == "text")
        thoughts += [text for kind, text in parts if kind == "thinking"]
    if content is None and any(not _is_empty(message.get(x)) for x in ("tool_calls", "function_call")):
        content = ""
    if not isinstance(content, str):
        raise InvalidValue("content is {type}, not text", type=json_kind(content))
    return content, thoughts[0] if thoughts else ""


def _part(part: Any) -> tuple[str, str]:
    """A part of a content: ("text" or "thinking", its text)."""
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, dict) else json_kind(part)
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind == "thinking" and isinstance(part.get("thinking"), str):
        return "thinking", part["thinking"]
    raise InvalidValue("content has a part of the type {type}; only text can be used", type=kind)


def _calls(message: dict[str, Any]) -> list[ToolCall]:
    """The calls in tool_calls, and in OpenAI's older function_call."""
    calls, single = _parsed(message.get("tool_calls")), _parsed(message.get("function_call"))
    if _is_empty(calls):
        calls = []
    if not isinstance(calls, list):
        raise InvalidValue("tool_calls is {type}, not a list", type=json_kind(calls))
    return [_call(x) for x in [*calls, *([] if _is_empty(single) else [single])]]


def _calls_in(content: str, speaker: str) -> list[ToolCall]:
    """The calls that the content of a function_call turn is."""
    calls = _parsed(content)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not calls:
        raise InvalidValue("the content of a {role} turn must be JSON: name and arguments", role=speaker)
    return [_call(x) for x in calls]


def _call(value: Any) -> ToolCall:
    value = _parsed(value)
    function = _parsed(value.get("function", value)) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidValue("a tool call without the name of its tool")
    unparsed = next((function[x] for x in ("arguments", "parameters") if not _is_empty(function.get(x))), {})
    arguments = _parsed(unparsed)
    if not isinstance(arguments, dict):
        raise InvalidValue("the arguments of the tool call {name!r} are not an object in JSON", name=function["name"])
    id_ = value.get("id")
    return ToolCall(function["name"], json.dumps(_without_nulls(arguments), ensure_ascii=False), str(id_ or ""))


def _flag(name: str, value: Any) -> bool:
    """Whether a turn is trained on.

    Raises:
        InvalidValue: the flag is neither on nor off, such as a weight of 0.5.
    """
    if _is_empty(value):
        return True
    truth = TRUTH.get(str(value).strip().lower())
    if truth is None and isinstance(value, float) and value in (0.0, 1.0):
        truth = bool(value)
    if truth is None:
        raise InvalidValue("{name} is {value!r}; a turn can be trained on (1) or not (0)", name=name, value=str(value)[:40])
    return truth


def _is_off(value: Any) -> bool:
    return TRUTH.get(str(value).strip().lower()) is False or value == 0


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, (str, list, dict)) and not value)


def _parsed(value: Any) -> Any:
    """JSON in a string as data; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_nulls(value: Any) -> Any:
    """Without the null fields that tables add to objects with other keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(x) for key, x in value.items() if x is not None}
    return [_without_nulls(x) for x in value] if isinstance(value, list) else value
