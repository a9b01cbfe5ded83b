"""ColumnMapping: which columns of a file make an Example. What all mappings use to read a record's cells."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from weitiao.core.cleaner import PartRole
from weitiao.core.errors import InvalidValue
from weitiao.core.example import Example
from weitiao.core.messages import Message
from weitiao.data.json_values import json_kind
from weitiao.data.records import Record

NO_INPUT = ("<noinput>", "<no input>", "<no_input>")  # what Alpaca's descendants write for an empty input
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width spaces and joiners, marks of byte order, soft hyphens
NUMPY_LIST = re.compile(r"""\s*(?:'[^']*'|"[^"]*"|[-\d.]+)(?:\s+(?:'[^']*'|"[^"]*"|[-\d.]+))+\s*""")
TRUTHS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class ColumnMapping:
    """How a record becomes an Example."""

    description: str
    """The columns, as they are printed and recorded: "text -> label"."""
    example_type: type
    make: Callable[[dict[str, Any]], Example]
    complete: Callable[[Example, Path], Example] | None = None
    """If a row names another file: reads that file, relative to the data file's folder."""
    reads: tuple[str, ...] = ()
    """Every column that `make` reads: what the others hold is reported."""
    unread_keys: Callable[[dict[str, Any]], Iterable[str]] | None = None
    """The keys inside a record's columns that hold something and that `make` does not read: messages[].mood."""
    texts: MappingOf[str, PartRole] = field(default_factory=dict)
    """The columns whose strings are text, and what each is to the model; a column of messages has roles of its own."""
    has_offsets: bool = False
    """Other columns count characters of these texts: they may not change."""

    def to_example(self, record: Record) -> Example:
        """The Example of a record.

        Raises:
            ValueError: the record has none.
        """
        example = self.make(record.fields)
        return example if self.complete is None else self.complete(example, Path(record.where.file).parent)


class Mapping(Protocol):
    """One file in data/mappings/: which columns make one type of Example."""

    EXAMPLE_TYPE: type
    OBJECTIVE: str
    """An objective that trains on this Example, for hints."""
    TARGETS: tuple[str, ...]
    """What `columns` may name."""
    NOT_FOUND: Message
    """What is reported if no columns fit."""
    COLUMNS: str
    """The `columns` setting that would help."""
    INPUTS: tuple[str, ...]
    """The columns that are read for inference."""

    def infer_columns(self, first_values: dict[str, Any]) -> list[ColumnMapping]:
        """Mappings that fit, the best first. `first_values` has the first value of each column."""
        ...

    def from_columns(self, columns: dict[str, str]) -> ColumnMapping | None:
        """The mapping that the `columns` setting describes."""
        ...

    def for_inference(self, columns: dict[str, str], first_values: dict[str, Any]) -> ColumnMapping | None:
        """A mapping for rows without answers."""
        ...


def columns_of(*names: str | None) -> tuple[str, ...]:
    """The names that are not None: what a mapping reads."""
    return tuple(dict.fromkeys(name for name in names if name))


def texts_of(**columns: Sequence[str | None]) -> dict[str, PartRole]:
    """
    >>> texts_of(prompt=("question", None), answer=("reply",))
    {'question': 'prompt', 'reply': 'answer'}
    """
    return {name: cast(PartRole, role) for role, names in columns.items() for name in names if name}


# -- cells ------------------------------------------------------------------------------------------------------------


def is_empty(value: Any) -> bool:
    """A missing value: null, NaN, or text without a visible character."""
    return value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and is_blank(value))


def is_blank(text: str) -> bool:
    """Text of spaces and invisible characters only."""
    return not text.strip().strip(INVISIBLE).strip()


def string(record: dict[str, Any], key: str) -> str:
    """A column as text; numbers are converted.

    Raises:
        InvalidValue: it is missing, empty or not text.
    """
    if key not in record:
        raise InvalidValue("column {column!r} is missing", column=key)
    value = record[key]
    if value is None or value != value:
        raise InvalidValue("column {column!r} is empty ({value})", column=key, value="null" if value is None else "NaN")
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise InvalidValue("column {column!r} is {type}, not text", column=key, type=json_kind(value))
    if isinstance(value, float) and math.isinf(value):
        raise InvalidValue("column {column!r} is {value}, not a finite number", column=key, value=value)
    return str(value)


def text_of(record: dict[str, Any], key: str) -> str:
    """A column as text that is not blank.

    Raises:
        InvalidValue: it is missing, empty, blank or not text.
    """
    text = string(record, key)
    if is_blank(text):
        raise InvalidValue("the text is empty")
    return text


def optional_text(record: dict[str, Any], key: str | None) -> str:
    """A column as text; "" where it is missing or empty.

    Raises:
        InvalidValue: it is a list, an object or a bool.
    """
    return "" if key is None or is_empty(record.get(key)) else string(record, key)


def class_name(value: Any, key: str) -> str:
    """The name of a class as text; 2.0 becomes "2", because a table with missing values has floats.

    Raises:
        InvalidValue: it is empty, or neither text nor a number.
    """
    if is_empty(value):
        raise InvalidValue("column {column!r} is empty: the row has no class", column=key)
    if not isinstance(value, (str, int, float)):
        raise InvalidValue("column {column!r} is {type}, not a class", column=key, type=json_kind(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def number_of(value: Any, key: str) -> float:
    """A column as a finite number.

    Raises:
        InvalidValue: it is not one.
    """
    if is_empty(value):
        raise InvalidValue("column {column!r} is empty: the row has no number", column=key)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
        if isinstance(value, str) and "_" in value:  # Python reads 1_0 as 10
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        if isinstance(value, str) and "," in value and _is_number(value.strip().replace(",", ".", 1)):
            raise InvalidValue(
                "column {column!r} is {value!r}: write numbers with a decimal point", column=key, value=value[:40]
            ) from None
        raise InvalidValue("column {column!r} is {value!r}, not a number", column=key, value=str(value)[:40]) from None
    if not math.isfinite(number):
        raise InvalidValue("column {column!r} is {value}, not a finite number", column=key, value=value)
    return number


def truth_of(value: Any) -> bool | None:
    """A flag: true, false, 1, 0, or one of these as text; None for anything else."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    return TRUTHS.get(value.strip().casefold()) if isinstance(value, str) else None


def unpacked(value: Any) -> Any:
    """A list or an object, also one that a table holds as text: ["a", "b"] in JSON, or ['a', 'b'] as Python writes it."""
    if not isinstance(value, str) or value.strip()[:1] + value.strip()[-1:] not in ("[]", "{}") or without_commas(value):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return value


def without_commas(text: str) -> bool:
    """A list as numpy prints it, ['a' 'b'] or [0 1]: Python would read the first as the one word 'ab'."""
    inside = text.strip()
    return inside[:1] + inside[-1:] == "[]" and NUMPY_LIST.fullmatch(inside[1:-1]) is not None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
