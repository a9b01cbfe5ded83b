"""JSON as people save it: one object per line, one list, objects over several lines, rows inside {"train": [...]}.

Commas behind the last element are dropped; NaN is read as Python writes it. Everything else that is not JSON is an error
with its line and column. Python's own decoder decides what a text means; orjson reads the lines of which that is known.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from weitiao.core.errors import InvalidValue
from weitiao.core.messages import Message

LAST_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)  # a string, or a comma before ] or }
PYTHON_DICT = re.compile(r"\s*\[?\s*\{\s*'")
BETWEEN = re.compile(r"[\s,]*")
NOT_JSON = Message("not JSON: {error} at line {line}, column {column}")
DEEP = Message("nested too deeply")
AS_ZERO, LONG_NUMBER = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 19  # 64 bits hold all numbers of 18 digits
KINDS = {
    bool: Message("true or false"), int: Message("a number"), float: Message("a number"), str: Message("text"),
    list: Message("a list"), tuple: Message("a list"), dict: Message("an object"), type(None): Message("null"),
}  # fmt: skip


def parse(text: str) -> Any:
    """One JSON value.

    Raises:
        InvalidValue: it is none, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if PYTHON_DICT.match(text):
            raise InvalidValue("a dict as Python prints it, not JSON: write it with json.dumps") from None
        if error.lineno > 1:
            raise InvalidValue(NOT_JSON, error=_reason(error), line=error.lineno, column=error.colno) from None
        raise InvalidValue("not JSON: {error} at column {column}", error=_reason(error), column=error.colno) from None
    except RecursionError:
        raise InvalidValue(DEEP) from None
    except InvalidValue:
        raise
    except ValueError as error:  # a number of more than 4,300 digits
        raise InvalidValue("not JSON: {error}", error=str(error)) from None


def parse_line(text: str) -> Any:
    """The value of one line; a comma behind it is dropped.

    Raises:
        InvalidValue: it is none.
    """
    try:
        return parse(text)
    except InvalidValue:
        if text.rstrip().endswith(","):
            return parse(text.rstrip()[:-1])
        raise


def parse_plain(raw: bytes) -> Any:
    """The value of a line in UTF-8 if `parse_line` certainly reads the same; None if that must be asked (also for null).

    orjson refuses what only Python reads: NaN, lone surrogates, a comma at the end. It reads two things differently: of a
    key that is there twice it takes the last, so then fewer quotation marks are written than were read; and long whole
    numbers become floats. What is nested deeper than 254 levels it does not write.
    """
    try:
        value = orjson.loads(raw)
        again = orjson.dumps(value)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    if raw.count(b'"') != again.count(b'"') or (b"\\" in raw and b"\\u0022" in raw):
        return None
    return None if LONG_NUMBER in raw.translate(AS_ZERO) else value


def values_of(text: str) -> list[tuple[int, Any]]:
    """(line, value) of each JSON value of a text, one behind the other, with or without commas between them.

    Raises:
        InvalidValue: something is not JSON; with line and column.
    """
    text = LAST_COMMA.sub(lambda match: match[0] if match[0] != "," else " ", text.removeprefix("\ufeff"))
    decoder, values = json.JSONDecoder(object_pairs_hook=_object), []
    position, line = _skip(text, 0), 1 + text[: _skip(text, 0)].count("\n")
    while position < len(text):
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if PYTHON_DICT.match(text, position):
                raise InvalidValue("a dict as Python prints it, not JSON: write it with json.dumps") from None
            raise InvalidValue(NOT_JSON, error=_reason(error), line=error.lineno, column=error.colno) from None
        except RecursionError:
            raise InvalidValue(DEEP) from None
        except InvalidValue:
            raise
        except ValueError as error:
            raise InvalidValue("not JSON: {error}", error=str(error)) from None
        values.append((line, value))
        following = _skip(text, end)
        line += text.count("\n", position, following)
        position = following
    return values


def rows_inside(value: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """(key, rows) where one object holds all rows: {"train": [{...}, ...]}; None where it is a row itself.

    Raises:
        InvalidValue: it holds several lists of rows, or is a table by columns.
    """
    lists = {key: x for key, x in value.items() if isinstance(x, list) and x and all(isinstance(y, dict) for y in x)}
    columns = [x for x in value.values() if isinstance(x, dict) and x and all(k.isdecimal() for k in x)]
    if columns and len(columns) == len(value):
        raise InvalidValue(
            "a table by columns, as pandas' to_json writes it: write the rows with to_json(orient='records', lines=True)"
        )
    lists = {key: x for key, x in lists.items() if not _are_turns(x)}
    if not lists:
        return None
    if len(lists) > 1:
        raise InvalidValue(
            "one object with several lists of rows ({keys}): write each list to a file of its own", keys=", ".join(lists)
        )
    return next(iter(lists.items()))


def _are_turns(rows: list[dict[str, Any]]) -> bool:
    """The turns of one conversation, the entities of one text, or the answers of one question; no rows."""
    return all({"role", "from", "start", "start_offset", "answer_start", "function"} & row.keys() for row in rows)


def _reason(error: json.JSONDecodeError) -> str:
    """Python's words; some end with "at", for the place that follows."""
    return error.msg.removesuffix(" at").removesuffix(" starting")


def _skip(text: str, position: int) -> int:
    match = BETWEEN.match(text, position)
    return match.end() if match else position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ.

    Raises:
        InvalidValue: a key is there twice: the second value would replace the first.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [key for key, _ in pairs]
        raise InvalidValue("the key {key!r} is there twice", key=next(x for x in names if names.count(x) > 1))
    return fields


def complete_objects(text: str) -> Iterator[bool]:
    """For each line that is not blank: whether it is an object of its own."""
    for line in text.split("\n"):
        if line.strip():
            try:
                yield isinstance(parse(line), dict)
            except InvalidValue:
                yield False


def json_kind(value: Any) -> Message | str:
    """What a value is, in the words of JSON."""
    return KINDS.get(type(value), type(value).__name__)
