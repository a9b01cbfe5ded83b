"""What mappings share: a record's columns, read with care."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.example import Example
from weitiao.data.records import Record

TEXTS = ("text", "sentence", "content", "document", "review", "title", "question", "utterance")
LABELS = ("label", "labels", "class", "category", "topic", "intent", "sentiment", "target")


@dataclass(frozen=True)
class ColumnMapping:
    """How a record becomes an Example. `words` is what is printed."""

    description: str
    makes: type
    make: Callable[[dict[str, Any]], Example]
    beside: Callable[[Example, Path], Example] | None = None
    """Where a row names another file: the Example that knows it, from the folder that the data file lies in."""

    def of(self, record: Record) -> Example:
        """The Example that a record makes.

        Raises:
            ValueError: it makes none.
        """
        made = self.make(record.fields)
        return made if self.beside is None else self.beside(made, Path(record.where.file).parent)


class Mapping(Protocol):
    """One file in data/mappings/: which columns make one type of Example."""

    MAKES: type
    """The Example."""
    PURPOSE: str
    """An objective that trains on it, for hints."""
    TARGETS: tuple[str, ...]
    """What `columns` may name."""
    LACKING: str
    """What is reported when no columns fit."""
    NEEDS: str
    """The `columns` that would help."""
    INPUTS: tuple[str, ...]
    """The columns that are read when nobody knows the answer."""

    def infer_columns(self, seen: dict[str, Any]) -> list[ColumnMapping]: ...

    def from_columns(self, columns: dict[str, str]) -> ColumnMapping | None: ...

    def for_inference(self, columns: dict[str, str], seen: dict[str, Any]) -> ColumnMapping | None: ...


def first_of(known: Iterable[str], there: Iterable[str]) -> str | None:
    """The first of the known names that is there."""
    return next((name for name in known if name in there), None)


def string(record: dict[str, Any], key: str) -> str:
    """A column's words; numbers are written out.

    Raises:
        ValueError: it is missing, empty or not text.
    """
    if key not in record:
        raise ValueError(f"column {key!r} is missing")
    value = record[key]
    if value is None or value != value:
        raise ValueError(f"column {key!r} is empty ({'null' if value is None else 'NaN'})")
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"column {key!r} is {type(value).__name__}, not text")
    return str(value)


def name_of(value: Any, key: str) -> str:
    """A class or a kind as written; 2.0 is 2, as a table with gaps has it.

    Raises:
        ValueError: it is empty, or no word or number.
    """
    if value is None or value != value or not str(value).strip():
        raise ValueError(f"column {key!r} is empty: the row has no class")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"column {key!r} holds {type(value).__name__}, not a class")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def text_of(record: dict[str, Any], key: str) -> str:
    """As `string`, and not blank."""
    words = string(record, key)
    if not words.strip():
        raise ValueError("the text is empty")
    return words


def number_of(given: Any, column: str) -> float:
    """What is written as a finite number.

    Raises:
        ValueError: it is none.
    """
    if given is None or (isinstance(given, str) and not given.strip()):
        raise ValueError(f"column {column!r} is empty: the row has no number")
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"column {column!r} is {str(given)[:40]!r}, not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"column {column!r} is {given}, not a finite number")
    return number
