"""ColumnMapping: which columns of a file make an Example. What all mappings use to read a record's columns."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.errors import InvalidValue
from weitiao.core.example import Example
from weitiao.core.messages import Message
from weitiao.data.records import Record

TEXTS = ("text", "sentence", "content", "document", "review", "title", "question", "utterance")
LABELS = ("label", "labels", "class", "category", "topic", "intent", "sentiment", "target")


@dataclass(frozen=True)
class ColumnMapping:
    """How a record becomes an Example."""

    description: str
    """The columns, as they are printed and recorded: "text -> label"."""
    example_type: type
    make: Callable[[dict[str, Any]], Example]
    complete: Callable[[Example, Path], Example] | None = None
    """If a row names another file: reads that file, relative to the data file's folder."""

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


def first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """The first of the names that is a column."""
    return next((name for name in names if name in columns), None)


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
        raise InvalidValue("column {column!r} is {type}, not text", column=key, type=type(value).__name__)
    return str(value)


def class_name(value: Any, key: str) -> str:
    """The name of a class as text; 2.0 becomes "2", because a table with missing values has floats.

    Raises:
        InvalidValue: it is empty, or neither text nor a number.
    """
    if value is None or value != value or not str(value).strip():
        raise InvalidValue("column {column!r} is empty: the row has no class", column=key)
    if not isinstance(value, (str, int, float)):
        raise InvalidValue("column {column!r} is {type}, not a class", column=key, type=type(value).__name__)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def text_of(record: dict[str, Any], key: str) -> str:
    """A column as text that is not blank.

    Raises:
        InvalidValue: it is missing, empty, blank or not text.
    """
    text = string(record, key)
    if not text.strip():
        raise InvalidValue("the text is empty")
    return text


def number_of(value: Any, key: str) -> float:
    """A column as a finite number.

    Raises:
        InvalidValue: it is not one.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InvalidValue("column {column!r} is empty: the row has no number", column=key)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidValue("column {column!r} is {value!r}, not a number", column=key, value=str(value)[:40]) from None
    if not math.isfinite(number):
        raise InvalidValue("column {column!r} is {value}, not a finite number", column=key, value=value)
    return number
