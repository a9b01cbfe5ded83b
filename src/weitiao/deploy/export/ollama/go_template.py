"""Go's text/template, as far as our templates use it: to prove that one writes what a chat template writes.

{{ .Role }}  {{ $x }}  {{ range .Messages }}  {{ if eq .Role "user" }}  {{ else if ... }}  {{ else }}  {{ end }}
{{ $x := .System }}  {{ $x = "" }}  {{- and -}} remove the white space before and after
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weitiao.core.errors import InvalidValue

ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s]+')
Node = tuple[str, Any, list[Any], list[Any]]


def render_go(template: str, data: Mapping[str, Any]) -> str:
    """The text that Go's template engine writes.

    Raises:
        InvalidValue: it has a construct that is not here.
    """
    tokens = _tokens(template)
    nodes, rest, _ = _parse(tokens, 0)
    if rest != len(tokens):
        raise InvalidValue("a template ends too early")
    out: list[str] = []
    _run(nodes, data, {"$": data}, out)
    return "".join(out)


def _tokens(template: str) -> list[tuple[str, str]]:
    """("text", ...) and ("action", ...), white space removed where an action says so."""
    tokens: list[tuple[str, str]] = []
    at, trim = 0, False
    for match in ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        text = text.rstrip() if match[1] else text
        tokens += [("text", text)] if text else []
        tokens.append(("action", match[2]))
        at, trim = match.end(), bool(match[3])
    text = template[at:]
    text = text.lstrip() if trim else text
    return tokens + ([("text", text)] if text else [])


def _parse(tokens: list[tuple[str, str]], at: int) -> tuple[list[Node], int, str]:
    """(nodes up to an end or an else, what follows it, its text)."""
    nodes: list[Node] = []
    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        first, _, rest = text.partition(" ")
        if kind == "text":
            nodes.append(("text", text, [], []))
        elif first in ("end", "else"):
            return nodes, at, text
        elif first in ("if", "range"):
            node, at = _parse_block(first, rest, tokens, at)
            nodes.append(node)
        else:
            nodes.append(("value", text, [], []))
    return nodes, at, ""


def _parse_block(kind: str, condition: str, tokens: list[tuple[str, str]], at: int) -> tuple[Node, int]:
    """An if or a range up to its end; `else if` is an if in the else, which the same end closes."""
    body, at, stop = _parse(tokens, at)
    other: list[Any] = []
    if stop.startswith("else if "):
        node, at = _parse_block("if", stop.removeprefix("else if "), tokens, at)
        other = [node]
    elif stop == "else":
        other, at, stop = _parse(tokens, at)
    elif stop != "end":
        raise InvalidValue("a template ends too early")
    return (kind, condition, body, other), at


def _run(nodes: Sequence[Node], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    for kind, text, body, other in nodes:
        if kind == "text":
            out.append(text)
        elif kind == "if":
            _run(body if _value(text, dot, variables) else other, dot, variables, out)
        elif kind == "range":
            for item in _value(text, dot, variables):
                _run(body, item, variables, out)
        elif (assigned := re.fullmatch(r"(\$\w+)\s*:?=\s*(.+)", text)) is not None:
            variables[assigned[1]] = _value(assigned[2], dot, variables)
        else:
            out.append(str(_value(text, dot, variables)))


def _value(text: str, dot: Any, variables: dict[str, Any]) -> Any:
    parts = WORD.findall(text)
    if parts[0] in ("eq", "ne") and len(parts) == 3:
        a, b = (_operand(x, dot, variables) for x in parts[1:])
        return (a == b) == (parts[0] == "eq")
    if parts[0] == "not" and len(parts) == 2:
        return not _operand(parts[1], dot, variables)
    if len(parts) != 1:
        raise InvalidValue("a template has {text!r}, which is not here", text=text)
    return _operand(parts[0], dot, variables)


def _operand(word: str, dot: Any, variables: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word[1:-1].replace('\\"', '"').replace("\\n", "\n")
    if word.startswith("."):
        return dot[word[1:]]
    if word.startswith("$."):
        return variables["$"][word[2:]]
    if word in variables:
        return variables[word]
    raise InvalidValue("a template has {text!r}, which is not here", text=word)
