"""Find the mapping of a file: from its first rows, or from the `columns` setting."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.messages import Message
from weitiao.core.registry import find_module, names, nearest
from weitiao.data.columns import ColumnMapping, Mapping

TABLES = (".csv", ".tsv")  # files whose columns are named in their first line


def find_mapping(
    records: Sequence[dict[str, Any]],
    example_type: type,
    columns: dict[str, str] | None,
    file: str,
    earlier: Collection[str] = (),
) -> ColumnMapping:
    """The mapping of a file, from its first records.

    Args:
        example_type: the Example that the objective trains on.
        columns: from the recipe; {prompt: question, completion: answer}.
        earlier: descriptions of the mappings of earlier files, which come before others that fit.

    Raises:
        DataError: a column is missing, no columns fit, or they fit another Example.
    """
    module, first_values = _mapping_of(example_type), _first_values(records)
    available = ", ".join(sorted(first_values))
    if columns:
        _check_columns(columns, first_values, file, module.TARGETS)
        if mapping := module.from_columns(columns):
            return mapping
        raise DataError("{file}: this objective needs columns: {columns}.", file=file, columns=module.COLUMNS)
    for description in earlier:
        named = {name: x for name, x in first_values.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", description)}
        if same := next((x for x in module.infer_columns(named) if x.description == description), None):
            return same
    if fitting := module.infer_columns(first_values):
        return fitting[0]
    is_table = Path(file).suffix.lower() in TABLES
    hint = Message(" The first line of a table must hold the names of its columns.") if is_table else Message("")
    others = [(x.infer_columns(first_values), x.OBJECTIVE) for x in _mappings() if x is not module]
    if other := next(((mappings[0], objective) for mappings, objective in others if mappings), None):
        raise DataError(
            "{file}: {problem}; its columns are: {known}. They look like {description}, for objective: {objective}. "
            "Name the columns with columns: {columns}.{hint}",
            file=file,
            problem=module.NOT_FOUND,
            known=available,
            description=other[0].description,
            objective=other[1],
            columns=module.COLUMNS,
            hint=hint,
        )
    raise DataError(
        "{file}: {problem}; its columns are: {known}. Name the columns with columns: {columns}.{hint}",
        file=file,
        problem=module.NOT_FOUND,
        known=available,
        columns=module.COLUMNS,
        hint=hint,
    )


def named_mapping(records: Sequence[dict[str, Any]], columns: dict[str, str], file: str) -> ColumnMapping:
    """The mapping that the `columns` setting describes, whatever is trained on it.

    Raises:
        DataError: a column is missing, or the columns make no Example.
    """
    first_values = _first_values(records)
    _check_columns(columns, first_values, file, sorted({x for module in _mappings() for x in module.TARGETS}))
    if mapping := next((x for module in _mappings() if (x := module.from_columns(columns))), None):
        return mapping
    raise DataError(
        "{file}: no objective trains on {columns} alone; possible are {possible}.",
        file=file,
        columns=", ".join(columns),
        possible=", ".join(module.COLUMNS for module in _mappings()),
    )


def find_inference_mapping(
    records: Sequence[dict[str, Any]], example_type: type, columns: dict[str, str] | None, file: str
) -> ColumnMapping:
    """The mapping of rows without answers.

    Raises:
        DataError: the input columns are missing.
    """
    module, first_values, requested = _mapping_of(example_type), _first_values(records), columns or {}
    if mapping := module.for_inference(requested, first_values):
        return mapping
    available = ", ".join(sorted(first_values))
    if "text" in module.TARGETS:
        missing = ", ".join(requested.values()) or "text"
        raise DataError(
            "{file} has no column {missing} to read; its columns are: {known}. Name the column with --text.",
            file=file,
            missing=missing,
            known=available,
        )
    raise DataError(
        "{file} needs the columns {missing}; its columns are: {known}.",
        file=file,
        missing=", ".join(module.INPUTS),
        known=available,
    )


def fitting_mappings(records: Sequence[dict[str, Any]]) -> dict[str, ColumnMapping]:
    """Every mapping that fits the first records, by the name of an objective that trains on its Example."""
    first_values = _first_values(records)
    fitting = ((x.OBJECTIVE, x.infer_columns(first_values)) for x in _mappings())
    return {objective: mappings[0] for objective, mappings in fitting if mappings}


def _mapping_of(example_type: type) -> Mapping:
    return next(x for x in _mappings() if x.EXAMPLE_TYPE is example_type)


def _mappings() -> list[Mapping]:
    """Plain text last: most files have a column that it would fit."""
    return sorted((find_module(Mapping, name) for name in names(Mapping)), key=lambda x: x.OBJECTIVE == "causal_lm")


def _first_values(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first value of each column that is not null."""
    values: dict[str, Any] = {}
    for record in records:
        for name, value in record.items():
            if values.get(name) is None:
                values[name] = value
    return values


def _check_columns(columns: dict[str, str], first_values: dict[str, Any], file: str, targets: Sequence[str]) -> None:
    """Every target is known to some mapping, and every column exists."""
    all_targets = {target for module in _mappings() for target in module.TARGETS}
    for target, column in columns.items():
        if target not in all_targets:
            raise DataError(
                "columns: there is no {target!r}.{hint} There are: {known}.",
                target=target,
                hint=nearest(target, targets),
                known=", ".join(targets),
            )
        if column not in first_values:
            available = sorted(first_values)
            raise DataError(
                "{file} has no column {column!r}.{hint} Its columns are: {known}.",
                file=file,
                column=column,
                hint=nearest(column, available),
                known=", ".join(available),
            )
