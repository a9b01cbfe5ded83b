"""Turns as the messages that a chat template reads, in the form that it expects; and what of a turn it writes.

Templates differ in how they take tool calls and reasoning. `choose_form` tries the forms on a short conversation and takes
the first that the template writes in full.

{"role": "assistant", "content": "Let me look.", "reasoning_content": "...",
 "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import ToolCall, Turn

PROBE_TOOL = {"name": "lookup", "description": "-", "parameters": {"type": "object", "properties": {}}}
PROBE_TOOLS = json.dumps([{"type": "function", "function": PROBE_TOOL}])
ID_LENGTH = 9  # Mistral's templates refuse other ids


@dataclass(frozen=True)
class MessageForm:
    """How a chat template expects tool calls and reasoning."""

    arguments_as_text: bool = False
    """The arguments of a call are JSON text, not an object."""
    empty_content: str | None = ""
    """The content of a turn that only calls tools."""
    number_calls: bool = False
    """Calls need ids of nine digits."""
    as_metadata: bool = False
    """A call is a message whose metadata name the tool, its result a message of the role observation (GLM-4)."""
    reasoning: str = "reasoning_content"
    """The key of the reasoning."""


PLAIN = MessageForm()
CALL_FORMS = (
    *(MessageForm(text, empty, ids) for ids in (False, True) for text in (False, True) for empty in ("", None)),
    MessageForm(as_metadata=True),
)
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
Render = Callable[[Sequence[Turn], str, MessageForm], str]


def as_messages(turns: Sequence[Turn], form: MessageForm) -> list[dict[str, Any]]:
    """The messages of a conversation."""
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of called tools, by the call's id
    pending: list[str] = []  # ids of calls without a result so far
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning:
            message[form.reasoning] = turn.reasoning
        if turn.tool_calls and form.as_metadata:
            messages += [message] if turn.content else []
            messages += [{"role": turn.role, "metadata": x.name, "content": x.arguments} for x in turn.tool_calls]
            continue
        if turn.tool_calls:
            calls = [_numbered(x, len(names) + i) if form.number_calls else x for i, x in enumerate(turn.tool_calls)]
            names |= {x.id or str(len(names)): x.name for x in calls}
            pending = [x.id for x in calls]
            message |= {"content": turn.content or form.empty_content, "tool_calls": [_call(x, form) for x in calls]}
        if turn.role == "tool":
            id_ = pending.pop(0) if form.number_calls and pending else turn.tool_call_id
            message |= {"role": "observation"} if form.as_metadata else {}
            message |= {"tool_call_id": id_} if id_ else {}
            message |= {"name": turn.name or names.get(id_, "")} if turn.name or id_ in names else {}
        messages.append(message)
    return messages


def _numbered(call: ToolCall, number: int) -> ToolCall:
    return replace(call, id=f"{number:0{ID_LENGTH}d}")


def _call(call: ToolCall, form: MessageForm) -> dict[str, Any]:
    arguments = call.arguments if form.arguments_as_text else json.loads(call.arguments)
    plain = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **plain} if call.id else plain


def choose_form(render: Render, calls: bool, reasoning: bool) -> MessageForm:
    """The form in which a template writes calls and reasoning.

    Raises:
        InvalidValue: it writes them in none.
    """
    form = PLAIN
    if calls:
        turns = (
            Turn("user", "Hi."),
            Turn("assistant", "", tool_calls=(ToolCall("lookup", '{"place": "Oslo"}'),)),
            Turn("tool", "sunny", name="lookup"),
            Turn("assistant", "Done."),
        )
        fitting = [x for x in CALL_FORMS if _writes(render, turns, PROBE_TOOLS, x)]
        if not fitting:
            raise InvalidValue(
                "the chat template does not render tool calls, so they would be lost: set chat_template to one that does"
            )
        form = fitting[0]
    if reasoning:
        turns = (Turn("user", "Hi."), Turn("assistant", "Done.", reasoning="Think first."))
        keys = [key for key in REASONING_KEYS if _writes(render, turns, "", replace(form, reasoning=key))]
        if not keys:
            raise InvalidValue(
                "the chat template does not render an assistant's reasoning, so it would be lost: set chat_template to one "
                "that does"
            )
        form = replace(form, reasoning=keys[0])
    return form


def _writes(render: Render, turns: Sequence[Turn], tools: str, form: MessageForm) -> bool:
    """Whether the template writes all of the turns, and nothing of Python."""
    try:
        text = render(turns, tools, form)
    except (InvalidValue, DataError):
        return False
    written_as_python = form.empty_content is None and "None" in text
    return not written_as_python and not any(missing_parts(turn, text) for turn in turns)


# -- what is in a rendered text -----------------------------------------------------------------------------------------


def missing_parts(turn: Turn, text: str) -> list[str]:
    """Which of content, reasoning and tool_calls a text lacks. White space and letter case do not count."""
    text = plain(text)
    missing = [key for key in ("content", "reasoning") if not _occurs(getattr(turn, key), text)]
    if not all(_call_occurs(call, text) for call in turn.tool_calls):
        missing.append("tool_calls")
    return missing


def missing_tools(tools: str, text: str) -> list[str]:
    """Names of the tools that a text does not mention."""
    names = [str(x.get("function", x).get("name", "")) for x in json.loads(tools or "[]") if isinstance(x, dict)]
    return [name for name in names if not _occurs(name, plain(text))]


def _call_occurs(call: ToolCall, text: str) -> bool:
    arguments = json.loads(call.arguments)
    as_python = plain(str(arguments))
    if as_python in text and as_python != plain(json.dumps(arguments, ensure_ascii=False)):
        return False  # a template that expects text has joined an object to it
    return all(_occurs(x, text) for x in (call.name, *leaves(arguments)))


def leaves_of(turn: Turn) -> list[str]:
    """The names and arguments of all calls of a turn."""
    return [x for call in turn.tool_calls for x in (call.name, *leaves(json.loads(call.arguments)))]


def leaves(value: Any) -> Iterator[str]:
    """The keys and values of JSON data, as text."""
    if isinstance(value, dict):
        for key, x in value.items():
            yield str(key)
            yield from leaves(x)
    elif isinstance(value, list):
        for x in value:
            yield from leaves(x)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _occurs(part: str, text: str) -> bool:
    return any(x in text for x in content_forms(part))


def content_forms(part: str) -> tuple[str, ...]:
    """How a plain text may hold a part: as it is, or escaped for JSON."""
    return tuple(dict.fromkeys(map(plain, (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]))))


def plain(text: str) -> str:
    """Without white space and letter case."""
    return re.sub(r"\s+", "", text).casefold()
