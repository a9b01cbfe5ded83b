"""A conversation, or a prompt and its completion.

prompt/completion   {"prompt": ..., "completion": ...}            also question/answer, input/output, query/response
messages            {"messages": [{"role": ..., "content": ...}], "tools": [...]}
ShareGPT            {"conversations": [{"from": "human", "value": ...}]}
Alpaca              {"instruction": ..., "input": ..., "output": ...}      Dolly: instruction, context, response
"""

from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.core.example import Chat, Turn
from weitiao.core.messages import Message
from weitiao.data.chat.turns import checked, read_chat, read_tools, unread_keys
from weitiao.data.column_names import (
    INSTRUCTION_INPUTS,
    INSTRUCTION_OUTPUTS,
    INSTRUCTIONS,
    PROMPTS_COMPLETIONS,
    SYSTEMS,
    first_of,
    first_pair,
)
from weitiao.data.columns import NO_INPUT, ColumnMapping, columns_of, is_empty, optional_text, string, texts_of, unpacked
from weitiao.data.json_values import json_kind

EXAMPLE_TYPE = Chat
OBJECTIVE = "sft"
TARGETS = ("prompt", "completion", "context", "system", "messages")
NOT_FOUND = Message("no columns of a prompt and its completion found")
COLUMNS = "{prompt: ..., completion: ...} or {messages: ...}"
INPUTS = ("prompt",)
TOOLS = ("tools", "functions")


def infer_columns(first_values: dict[str, Any]) -> list[ColumnMapping]:
    """Mappings that fit, the best first."""
    mappings: list[ColumnMapping] = []
    system = first_of(SYSTEMS, first_values) or SYSTEMS[0]  # it may be missing from the first rows
    earlier = unpacked(first_values.get("history"))
    history = "history" if is_empty(earlier) or isinstance(earlier, list) else None
    optional = f", system: {system}" if system in first_values else ""
    if "messages" in first_values:
        mappings.append(_conversation("messages", "messages[].role/content", system))
    for key in ("conversations", "conversation"):
        if key in first_values:
            mappings.append(_conversation(key, f"{key}[].from/value (ShareGPT)", system))
    instruction, output = first_of(INSTRUCTIONS, first_values), first_of(INSTRUCTION_OUTPUTS, first_values)
    if instruction and output:
        more = first_of(INSTRUCTION_INPUTS, first_values)
        described = f"{f'{instruction} + {more}' if more else instruction} -> {output} (Alpaca)"
        mappings.append(_pair(described, instruction, output, system, more or INSTRUCTION_INPUTS[0], history))
    if pair := first_pair(PROMPTS_COMPLETIONS, first_values):
        mappings.append(_pair(f"{pair[0]} -> {pair[1]}{optional}", *pair, system, None, history))
    return mappings


def from_columns(columns: dict[str, str]) -> ColumnMapping | None:
    """The mapping that the `columns` setting describes."""
    if "messages" in columns:
        return _conversation(columns["messages"], f"{columns['messages']}[]", columns.get("system", "system"))
    if {"prompt", "completion"} <= columns.keys():
        prompt, completion, system, more = (columns.get(x) for x in ("prompt", "completion", "system", "context"))
        optional = f", system: {system}" if system else ""
        described = f"{prompt} + {more} -> {completion}" if more else f"{prompt} -> {completion}"
        return _pair(described + optional, columns["prompt"], columns["completion"], system, more)
    return None


def for_inference(columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
    """Conversations are answered by generation, not by a head."""
    raise TypeError("a Chat has no inference mapping: its answer is generated")


def _conversation(key: str, description: str, system: str | None) -> ColumnMapping:
    def unread(record: dict[str, Any]) -> list[str]:
        return [f"{key}[].{name}" for name in unread_keys(unpacked(record.get(key)))]

    return ColumnMapping(
        description,
        Chat,
        lambda record: _chat(record, key, system),
        reads=columns_of(key, system, *TOOLS),
        unread_keys=unread,
        texts=texts_of(prompt=(key,), system=(system,)),
    )


def _pair(
    description: str, prompt: str, completion: str, system: str | None, more: str | None = None, history: str | None = None
) -> ColumnMapping:
    """A question and its answer; `more` is the column of the text that the question is about."""

    def make(record: dict[str, Any]) -> Chat:
        if isinstance(record.get(prompt), list):  # TRL's conversational prompt/completion
            return _chat({**record, prompt: [*record[prompt], *_list(record, completion)]}, prompt, system)
        earlier = [*_system(record, system), *_history(record, history)]
        question = _with_input(string(record, prompt), optional_text(record, more))
        turns = (*earlier, Turn("user", question), Turn("assistant", string(record, completion)))
        return checked(turns, read_tools(_tools(record)))

    reads = columns_of(prompt, completion, system, more, history, *TOOLS)
    texts = texts_of(prompt=(prompt, more, history), answer=(completion,), system=(system,))
    return ColumnMapping(description, Chat, make, reads=reads, texts=texts)


def _with_input(question: str, more: str) -> str:
    """An instruction, and the text that it is about."""
    return f"{question}\n{more}" if more and more.strip().casefold() not in NO_INPUT else question


def _system(record: dict[str, Any], key: str | None) -> list[Turn]:
    content = optional_text(record, key)
    return [Turn("system", content)] if content else []


def _history(record: dict[str, Any], key: str | None) -> list[Turn]:
    """Earlier turns: pairs of question and answer."""
    history = unpacked(record.get(key)) if key else None
    if is_empty(history):
        return []
    if not isinstance(history, list):
        raise InvalidValue("column {column!r} is {type}, not a list of turns", column=key, type=json_kind(history))
    turns: list[Turn] = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            raise InvalidValue("{key}[{i}] is not a pair of texts: [question, answer]", key=key, i=i)
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _chat(record: dict[str, Any], key: str, system: str | None) -> Chat:
    return read_chat(_list(record, key), key, _system(record, system), _tools(record))


def _tools(record: dict[str, Any]) -> Any:
    """The tools; in older data of OpenAI, functions."""
    return next((record[x] for x in TOOLS if not is_empty(record.get(x))), None)


def _list(record: dict[str, Any], key: str) -> list:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise InvalidValue("{key!r} is missing or not a list of turns", key=key)
    return value
