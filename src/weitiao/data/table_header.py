"""The header of a table: the names of its columns."""

from collections.abc import Sequence
from pathlib import Path

from weitiao.core.errors import DataError


def column_names(path: Path, line: int, row: Sequence[str]) -> list[str]:
    """The names of the columns; one without a name is called by its number.

    Raises:
        DataError: two have the same name.
    """
    names = [name.strip("\ufeff \t\r\n") or f"column {i}" for i, name in enumerate(row, 1)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            "{path}, line {line}: the header has {names} more than once. Rename one of them.",
            path=path,
            line=line,
            names=", ".join(map(repr, repeated)),
        )
    return names
