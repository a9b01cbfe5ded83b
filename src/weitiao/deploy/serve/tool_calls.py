"""Calls of tools in a model's answer, as its own chat template writes them, read back as OpenAI's `tool_calls`.

    hermes    <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>      Qwen, Hermes, SmolLM
    llama3    {"name": "weather", "parameters": {"city": "Oslo"}}                            Llama 3.1 and later
    mistral   [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]               Mistral
    json      {"name": "weather", "arguments": {"city": "Oslo"}}                             written under a grammar

An answer that is not in the form is text, and stays it.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)
MARKERS = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]", "json": ""}
OPENINGS = {"hermes": "", "llama3": "{", "mistral": "[{", "json": "{"}
"""How an answer begins that is a call from its first character on."""


def tool_format_of(template: str) -> str:
    """The form in which a chat template writes calls; "" if it is none of these.

    >>> tool_format_of("... <tool_call> ..."), tool_format_of("... [TOOL_CALLS] ..."), tool_format_of("{{ messages }}")
    ('hermes', 'mistral', '')
    """
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    return "llama3" if "<|python_tag|>" in template or '"parameters": ' in template else ""


@dataclass
class ToolCallReader:
    """Splits an answer, as it comes, into text and calls."""

    format: str
    pending: str = ""
    """Text that may become a call."""
    passed_on: bool = field(default=False)

    def feed(self, text: str) -> str:
        """More of the answer; what of it is certainly text."""
        if not self.format:
            return text
        self.pending += text
        marker, opening = MARKERS[self.format], OPENINGS[self.format]
        head = self.pending.lstrip()
        if not self.passed_on and opening and (not head or head.startswith(opening) or opening.startswith(head)):
            return ""
        at = self.pending.find(marker) if marker else -1
        if at < 0:
            at = len(self.pending) - max((n for n in range(len(marker)) if self.pending.endswith(marker[:n])), default=0)
        ready, self.pending = self.pending[:at], self.pending[at:]
        self.passed_on = self.passed_on or bool(ready.strip())
        return ready

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """At the end of the answer: (the rest of its text, its calls)."""
        calls, rest = read_calls(self.format, self.pending)
        self.pending = ""
        return rest, calls


def read_calls(format: str, text: str) -> tuple[list[dict[str, Any]], str]:
    """(the calls in a text, the text without them)."""
    if format == "hermes":
        matches = list(HERMES.finditer(text))
        calls = [_call(_json(x[1])) for x in matches]
        if matches and all(calls):
            return [x for x in calls if x], HERMES.sub("", text).strip()
        return [], text
    if not format:
        return [], text
    value = _json(text.strip().removeprefix(MARKERS[format]).strip())
    values = value if isinstance(value, list) else [value]
    calls = [_call(x) for x in values]
    return ([x for x in calls if x], "") if calls and all(calls) else ([], text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> dict[str, Any] | None:
    """A call as OpenAI writes it; None: it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    function = {"name": value["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def call_schema(tools: Sequence[dict[str, Any]], name: str = "") -> dict[str, Any]:
    """A JSON Schema of a call of one of the tools, or of the one with this name."""
    functions = [x["function"] for x in tools if not name or x["function"]["name"] == name]
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": x["name"]},
                "arguments": x.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for x in functions
    ]
    return options[0] if len(options) == 1 else {"anyOf": options}
