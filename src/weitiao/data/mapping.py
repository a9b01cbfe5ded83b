"""Which columns mean what. The mapping is found by looking at the first rows, printed, and can be given by `columns`.

A file of mappings/ makes one kind of Example:

    MAKES                     the Example
    PURPOSE                   an objective that eats it, for hints
    TARGETS                   what `columns` may name
    LACKING, NEEDS            what is said when nothing fits, and the `columns` that would help
    recognise(seen)           Mappings that fit, the best first; `seen` has each column's first value
    as_given(columns)         the ColumnMapping that the user describes, or None
    INPUTS                    the columns that are read when nobody knows the answer
    unanswered(columns, seen) a ColumnMapping for rows whose answer nobody knows (predict), or None
"""

from collections.abc import Sequence
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.registry import find_module, names, nearest
from weitiao.data.columns import ColumnMapping, Mapping


def find_mapping(
    records: Sequence[dict[str, Any]], wanted: type, columns: dict[str, str] | None, file: str
) -> ColumnMapping:
    """The mapping of a file, from its first records.

    Args:
        wanted: the Example type that the objective eats.
        columns: given by the user; {prompt: question, completion: answer}.

    Raises:
        DataError: a given column is not there, nothing fits, or what fits is not what the objective eats.
    """
    part, seen = _part(wanted), _seen(records)
    if columns:
        _check(columns, seen, file, part.TARGETS)
        if mapping := part.from_columns(columns):
            return mapping
        raise DataError(f"{file}: this objective needs columns: {part.NEEDS}.")
    if found := part.infer_columns(seen):
        return found[0]
    others = [(found[0], x.PURPOSE) for x in _parts() if x is not part and (found := x.infer_columns(seen))]
    hint = f" It looks like {others[0][0].description}: that is for objective: {others[0][1]}." if others else ""
    raise DataError(
        f"{file}: {part.LACKING}; its columns are: {', '.join(sorted(seen))}.{hint} "
        f"Say which is which with columns: {part.NEEDS}."
    )


def find_inference_mapping(
    records: Sequence[dict[str, Any]], wanted: type, columns: dict[str, str] | None, file: str
) -> ColumnMapping:
    """As `find_mapping`, for rows whose answer nobody knows yet.

    Raises:
        DataError: there is no column to read.
    """
    part, seen, asked = _part(wanted), _seen(records), columns or {}
    mapping = part.for_inference(asked, seen)
    if mapping is None:
        named = ", ".join(repr(x) for x in asked.values()) or "text"
        there = ", ".join(sorted(seen))
        if "text" in part.TARGETS:
            raise DataError(f"{file} has no column {named} to read; its columns are: {there}. Name it with --text.")
        raise DataError(f"{file} has not the columns {' and '.join(part.INPUTS)}; its columns are: {there}.")
    return mapping


def _part(wanted: type) -> Mapping:
    return next(x for x in _parts() if x.MAKES is wanted)


def _parts() -> list[Mapping]:
    """The most telling first: a column named text is in many files."""
    return sorted((find_module(Mapping, name) for name in names(Mapping)), key=lambda x: x.MAKES.__name__ == "Text")


def _seen(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for record in records:
        for name, value in record.items():
            if seen.get(name) is None:
                seen[name] = value
    return seen


def _check(columns: dict[str, str], seen: dict[str, Any], file: str, mine: Sequence[str]) -> None:
    """Every name given is known, and every column there."""
    targets = {target for part in _parts() for target in part.TARGETS}
    for target, column in columns.items():
        if target not in targets:
            known = ", ".join(mine)
            raise DataError(f"columns: there is no {target!r}.{nearest(target, mine)} There are: {known}.")
        if column not in seen:
            there = sorted(seen)
            raise DataError(
                f"{file} has no column {column!r}.{nearest(column, there)} Its columns are: {', '.join(there)}."
            )
