"""Which columns mean what. The mapping is found by looking at the first rows, printed, and can be given by `columns`.

prompt/completion   {"prompt": ..., "completion": ...}            also question/answer, input/output, query/response
messages            {"messages": [{"role": ..., "content": ...}]}
ShareGPT            {"conversations": [{"from": "human", "value": ...}]}
Alpaca              {"instruction": ..., "input": ..., "output": ...}
text                {"text": ...}
labelled            {"text": ..., "label": "spam"}     also sentence/content/review; labels: a list, category, class ...
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.example import ROLES, Chat, Example, Labelled, Text, Turn
from weitiao.core.registry import nearest

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
TEXTS = ("text", "sentence", "content", "document", "review", "title", "question", "utterance")
LABELS = ("label", "labels", "class", "category", "topic", "intent", "sentiment", "target")
TARGETS = ("prompt", "completion", "system", "text", "messages", "label")


@dataclass(frozen=True)
class Mapping:
    """How a record becomes an Example. `words` is what is printed."""

    words: str
    makes: type
    make: Callable[[dict[str, Any]], Example]


def find_mapping(records: Sequence[dict[str, Any]], wanted: type, columns: dict[str, str] | None, file: str) -> Mapping:
    """The mapping of a file, from its first records.

    Args:
        wanted: the Example type that the objective eats.
        columns: given by the user; {prompt: question, completion: answer}.

    Raises:
        DataError: a given column is not there, nothing fits, or what fits is not what the objective eats.
    """
    there = sorted({name for record in records for name in record})
    if columns:
        return _given(columns, there, wanted, file)
    for found in _candidates(set(there)):
        if found.makes is wanted:
            return found
    if wanted is Labelled:
        raise DataError(
            f"{file}: no text with a class found; its columns are: {', '.join(there)}. "
            "Say which is which with columns: {text: ..., label: ...}."
        )
    if wanted is Text:  # a conversation can be read as text, but nobody should do that by mistake
        others = [(m.words, {Chat: "sft", Labelled: "classification"}[m.makes]) for m in _candidates(set(there))]
        hint = f" It looks like {others[0][0]}: that is for objective: {others[0][1]}." if others else ""
        raise DataError(f"{file}: plain text is wanted (a column 'text'); its columns are: {', '.join(there)}.{hint}")
    hint = " A column 'text' alone is for objective: causal_lm." if "text" in there else ""
    if any(m.makes is Labelled for m in _candidates(set(there))):
        hint = " A text with a class is for objective: classification."
    raise DataError(
        f"{file}: no question and answer found; its columns are: {', '.join(there)}.{hint} "
        "Say which is which with columns: {prompt: ..., completion: ...}."
    )


def find_question(records: Sequence[dict[str, Any]], wanted: type, columns: dict[str, str] | None, file: str) -> Mapping:
    """As `find_mapping`, for rows whose answer nobody knows yet.

    Raises:
        DataError: there is no column to read.
    """
    there = sorted({name for record in records for name in record})
    if wanted is not Labelled:
        raise TypeError(f"{wanted.__name__} is answered by writing")
    asked = (columns or {}).get("text")
    key = asked if asked in there else next((key for key in TEXTS if key in there), None)
    if key is None or (asked and key != asked):
        named = repr(asked) if asked else "text"
        raise DataError(f"{file} has no column {named} to read; its columns are: {', '.join(there)}. Name it with --text.")

    def make(record: dict[str, Any]) -> Labelled:
        words = _string(record, key)
        if not words.strip():
            raise ValueError("the text is empty")
        return Labelled(words, ())

    return Mapping(f"{key} is read", Labelled, make)


def _candidates(there: set[str]) -> list[Mapping]:
    found: list[Mapping] = []
    if "messages" in there:
        found.append(Mapping("messages[].role/content (chat messages)", Chat, lambda r: _chat(r, "messages")))
    for key in ("conversations", "conversation"):
        if key in there:
            found.append(Mapping(f"{key}[].from/value (ShareGPT)", Chat, lambda r, key=key: _chat(r, key)))
    if {"instruction", "output"} <= there:
        more = " + input" if "input" in there else ""
        found.append(Mapping(f"instruction{more} -> output (Alpaca)", Chat, _alpaca))
    for ask, say in PAIRS:
        if {ask, say} <= there:
            found.append(_pair(ask, say, "system" if "system" in there else None))
    for key in ("text", "content", "document"):
        if key in there:
            found.append(Mapping(key, Text, lambda r, key=key: Text(_string(r, key))))
            break
    text, label = (next((key for key in known if key in there), None) for known in (TEXTS, LABELS))
    if text and label:
        found.append(_labelled(text, label))
    return found


def _given(columns: dict[str, str], there: list[str], wanted: type, file: str) -> Mapping:
    for target, column in columns.items():
        if target not in TARGETS:
            known = ", ".join(TARGETS)
            raise DataError(f"columns: there is no {target!r}.{nearest(target, TARGETS)} There are: {known}.")
        if column not in there:
            raise DataError(
                f"{file} has no column {column!r}.{nearest(column, there)} Its columns are: {', '.join(there)}."
            )
    if wanted is Text and "text" in columns:
        key = columns["text"]
        return Mapping(f"{key} (as given)", Text, lambda r: Text(_string(r, key)))
    if wanted is Chat and "messages" in columns:
        key = columns["messages"]
        return Mapping(f"{key}[] (as given)", Chat, lambda r: _chat(r, key))
    if wanted is Chat and {"prompt", "completion"} <= columns.keys():
        return _pair(columns["prompt"], columns["completion"], columns.get("system"))
    if wanted is Labelled and {"text", "label"} <= columns.keys():
        return _labelled(columns["text"], columns["label"])
    needs = {Text: "{text: ...}", Labelled: "{text: ..., label: ...}"}
    need = needs.get(wanted, "{prompt: ..., completion: ...} or {messages: ...}")
    raise DataError(f"{file}: this objective needs columns: {need}.")


def _pair(ask: str, say: str, system: str | None) -> Mapping:
    def make(record: dict[str, Any]) -> Chat:
        if isinstance(record.get(ask), list):  # TRL's conversational prompt/completion
            return _chat({"messages": [*record[ask], *_list(record, say)]}, "messages")
        first = (Turn("system", _string(record, system)),) if system and record.get(system) else ()
        return _checked((*first, Turn("user", _string(record, ask)), Turn("assistant", _string(record, say))))

    return Mapping(f"{ask} -> {say}" + (f", system: {system}" if system else ""), Chat, make)


def _labelled(text: str, label: str) -> Mapping:
    def make(record: dict[str, Any]) -> Labelled:
        words, given = _string(record, text), record.get(label)
        if not words.strip():
            raise ValueError("the text is empty")
        if isinstance(given, list):
            return Labelled(words, tuple(sorted({str(x).strip() for x in given})))
        if given is None or not str(given).strip():
            raise ValueError(f"column {label!r} is empty: the row has no class")
        return Labelled(words, (str(given).strip(),))

    return Mapping(f"{text} -> class: {label}", Labelled, make)


def _alpaca(record: dict[str, Any]) -> Chat:
    ask, more = _string(record, "instruction"), record.get("input") or ""
    turns: list[Turn] = [Turn("system", str(record["system"]))] if record.get("system") else []
    for pair in record.get("history") or []:
        turns += [Turn("user", str(pair[0])), Turn("assistant", str(pair[1]))]
    turns += [Turn("user", f"{ask}\n{more}" if more else ask), Turn("assistant", _string(record, "output"))]
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


def _string(record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise ValueError(f"column {key!r} is missing")
    value = record[key]
    if value is None:
        raise ValueError(f"column {key!r} is empty (null)")
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"column {key!r} is {type(value).__name__}, not text")
    return str(value)


def _list(record: dict[str, Any], key: str) -> list:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key!r} is missing or not a list of turns")
    return value
