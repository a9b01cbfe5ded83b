"""Rows in memory as training data: a list of dicts, a pandas or polars frame, or a datasets.Dataset.

None of these libraries is imported here: a frame is recognized by the module of its class. Rows become JSON lines, which
are written into the Run, so that the fingerprint and resuming work as with a file.
"""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weitiao.core.errors import InvalidValue

FRAMES = ("pandas", "polars", "datasets")


def is_rows(value: Any) -> bool:
    """A frame, or a list of dicts that are not data sources: those have a path."""
    if _library(value) in FRAMES:
        return True
    is_list = isinstance(value, (list, tuple)) and bool(value)
    return is_list and all(isinstance(x, Mapping) and "path" not in x for x in value)


def as_json_lines(rows: Any) -> Iterator[str]:
    """Each row as a line of JSON.

    Raises:
        InvalidValue: a value has no form in JSON.
    """
    for number, row in enumerate(_as_dicts(rows), 1):
        try:
            yield json.dumps(_plain(row), ensure_ascii=False) + "\n"
        except TypeError as error:
            raise InvalidValue("row {number}: {problem}", number=number, problem=str(error)) from None


def _as_dicts(rows: Any) -> Iterable[Mapping[str, Any]]:
    library = _library(rows)
    if library == "pandas":
        return rows.to_dict("records")
    if library == "polars":
        return rows.iter_rows(named=True)
    if library == "datasets" and not hasattr(rows, "features"):  # a DatasetDict
        raise InvalidValue("a dataset with several splits was given: choose one, for example dataset['train']")
    return rows


def _library(value: Any) -> str:
    """pandas for a pandas.DataFrame; "" for what Python itself brings."""
    name = type(value).__module__.partition(".")[0]
    return "" if name in ("builtins", "collections") else name


def _plain(value: Any) -> Any:
    """A value as JSON has it: missing values are null, numbers of numpy are numbers.

    Raises:
        TypeError: it has no form in JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy: an array or a scalar
        return _plain(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")
