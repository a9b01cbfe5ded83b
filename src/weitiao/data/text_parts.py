"""The texts of a row, by the mapping of its columns: what cleaners see, and how changed texts are put back.

    {"messages": [{"role": "user", "content": "hi"}, ...]}      messages[0].content, a prompt; messages[1].content ...
    {"instruction": "Translate", "output": "..."}               instruction, a prompt; output, an answer

Not texts: roles, labels, ids, numbers, calls of tools, what tools return, and strings that are a list or an object in JSON.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from weitiao.core.cleaner import PartRole, TextPart
from weitiao.data.chat.turns import CALLERS, CONTENT_KEYS, REASONING, ROLE_KEYS, SPEAKERS, TEXT_PARTS
from weitiao.data.columns import ColumnMapping, is_blank, unpacked

ROLE_OF: dict[str, PartRole] = {"user": "prompt", "assistant": "answer", "system": "system"}
Path = tuple[str | int, ...]


def text_parts(fields: Mapping[str, Any], mapping: ColumnMapping) -> list[TextPart]:
    """The texts of a row that are not blank, in the order of its columns."""
    return [
        part
        for column, role in mapping.texts.items()
        for part in _in_cell(fields.get(column), (column,), role)
        if not is_blank(part.text)
    ]


def with_texts(fields: Mapping[str, Any], changes: Mapping[Path, str]) -> dict[str, Any]:
    """A copy of a row with other texts in these places."""
    new = dict(fields)
    for path, text in changes.items():
        new[str(path[0])] = _replaced(new[str(path[0])], path[1:], text)
    return new


def _in_cell(cell: Any, path: Path, role: PartRole) -> Iterator[TextPart]:
    """The texts of a cell: a string, or a list of strings, messages, or pairs of question and answer."""
    if isinstance(cell, str):
        if unpacked(cell) is cell:
            yield TextPart(path, role, cell)
        return
    for i, item in enumerate(cell if isinstance(cell, (list, tuple)) else ()):
        if isinstance(item, dict):
            yield from _in_message(item, (*path, i))
        elif isinstance(item, (list, tuple)) and len(item) == 2:
            yield from _in_cell(item[0], (*path, i, 0), "prompt")
            yield from _in_cell(item[1], (*path, i, 1), "answer")
        elif isinstance(item, str):
            yield TextPart((*path, i), role, item)


def _in_message(message: dict[str, Any], path: Path) -> Iterator[TextPart]:
    """The content of a message, and what the assistant thinks; of tools nothing."""
    speaker = next((str(message[x]).strip().lower() for x in ROLE_KEYS if message.get(x) is not None), "")
    role = ROLE_OF.get(SPEAKERS.get(speaker, ""))
    if role is None or speaker in CALLERS:
        return
    for key in (*CONTENT_KEYS, *REASONING):
        value = message.get(key)
        if isinstance(value, str):
            yield TextPart((*path, key), role, value)
        for i, part in enumerate(value if isinstance(value, list) else ()):
            if isinstance(part, str):
                yield TextPart((*path, key, i), role, part)
            elif isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
                yield TextPart((*path, key, i, "text"), role, part["text"])


def _replaced(value: Any, path: Path, text: str) -> Any:
    if not path:
        return text
    new: Any = dict(value) if isinstance(value, dict) else list(value)
    new[path[0]] = _replaced(value[path[0]], path[1:], text)
    return new
