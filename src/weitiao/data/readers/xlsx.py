"""Excel workbooks: the first sheet with rows, and every other visible one with the same header.

A row's line is the number that Excel shows beside it; rows of a further sheet are those of `file.xlsx#sheet`. Numbers
without a fraction are whole numbers, dates are text (2026-11-30). What the file has lost already is reported: numbers
of more than 15 digits, of which Excel keeps only the first 15, and formulas without a stored value.
"""

import datetime
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.finding import Finding
from weitiao.core.hardware import needs
from weitiao.core.messages import Message
from weitiao.data.records import Record
from weitiao.data.table_header import column_names
from weitiao.data.unpacking import read_file, refuse_large_parts

ENDINGS = (".xlsx", ".xlsm")
LONGEST = 10**15  # Excel keeps 15 digits of a number
FORMULA = re.compile(rb'<c\b[^>]*\br="([A-Z]+\d+)"[^>]*>\s*<f\b[^>]*(?:/>|>[^<]*</f>)\s*(<v>[^<]|<is>)?')
ERROR = re.compile(rb'<c\b(?=[^>]*\bt="e")[^>]*\br="([A-Z]+\d+)"')
SHEETS = re.compile(r"xl/worksheets/[^/]+\.xml")


@dataclass
class Sheet:
    """The rows of one sheet below its header."""

    file: str
    header: list[str]
    rows: list[tuple[int, list[Any]]]
    """(line, cells)."""


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per row that is not empty.

    Raises:
        DataError: the file is no workbook, has no rows, or a header has a name twice.
        RecipeError: python-calamine is not installed.
    """
    sheets, _ = _sheets(path, read_file(path))
    for sheet in sheets:
        for line, cells in sheet.rows:
            where = SourceLocation(sheet.file, line)
            if any(x is not None for x in cells[len(sheet.header) :]):
                reason = Message("{n} fields, but the header has {expected}", n=len(cells), expected=len(sheet.header))
                yield BadRow(where, reason, str(cells)[:200], "width")
            else:
                cells = cells + [None] * (len(sheet.header) - len(cells))
                yield Record(where, dict(zip(sheet.header, cells)))


def findings(path: Path) -> Iterator[Finding]:
    """Digits and formulas that the file has lost, and sheets that are not read."""
    whole = read_file(path)
    sheets, others = _sheets(path, whole)
    for sheet in sheets:
        for column, name in enumerate(sheet.header):
            long = [line for line, cells in sheet.rows if column < len(cells) and _is_long(cells[column])]
            if long:
                message = Message(
                    "{file}: column {column!r} has numbers of more than 15 digits in {n:,} rows (first: line {line}); "
                    "Excel has already replaced the last digits by zeros. Format the column as text where it comes from, "
                    "and export it again",
                    file=sheet.file,
                    column=name,
                    n=len(long),
                    line=long[0],
                )
                yield Finding("lost_digits", "warning", message)
    if others:
        message = Message("{file}: sheets that are not read: {names}", file=str(path), names=", ".join(others))
        yield Finding("sheets", "warning", message)
    yield from _empty_cells(path, whole)


def _empty_cells(path: Path, whole: bytes) -> Iterator[Finding]:
    """Cells that are empty only for a reader of values."""
    with zipfile.ZipFile(BytesIO(whole)) as archive:
        sheets = [archive.read(name) for name in archive.namelist() if SHEETS.fullmatch(name)]
    if cells := [x[1].decode() for sheet in sheets for x in FORMULA.finditer(sheet) if x[2] is None]:
        message = Message(
            "{file}: {n:,} cells hold a formula without its value ({cells}) and are read as empty: open the file in a "
            "spreadsheet and save it",
            file=str(path),
            n=len(cells),
            cells=_some(cells),
        )
        yield Finding("formulas", "warning", message)
    if cells := [x[1].decode() for sheet in sheets for x in ERROR.finditer(sheet)]:
        message = Message(
            "{file}: {n:,} cells hold an error ({cells}) and are read as empty", file=str(path), n=len(cells),
            cells=_some(cells),
        )  # fmt: skip
        yield Finding("cell_errors", "warning", message)


def _some(cells: list[str]) -> str:
    return ", ".join(cells[:5]) + (" ..." if len(cells) > 5 else "")


def _sheets(path: Path, whole: bytes) -> tuple[list[Sheet], list[str]]:
    """The sheets that are read, and the names of the others that hold something."""
    needs("python_calamine", "docs", "An Excel workbook")
    from python_calamine import CalamineError, SheetVisibleEnum, load_workbook

    refuse_large_parts(path, whole)
    sheets, others = list[Sheet](), list[str]()
    try:
        workbook = load_workbook(BytesIO(whole))
        for metadata in workbook.sheets_metadata:
            name = metadata.name
            rows = _rows(workbook.get_sheet_by_name(name))
            if not rows:
                continue
            line, first = rows[0]
            file = f"{path}#{name}" if sheets else str(path)
            header = _without_empty_end([_as_name(x) for x in first])
            if metadata.visible != SheetVisibleEnum.Visible or (sheets and header != _plain(sheets[0].header)):
                others.append(name)
            else:
                sheets.append(Sheet(file, column_names(path, line, header), rows[1:]))
    except (CalamineError, ValueError, OSError, KeyError) as error:
        raise DataError("{path} is not a workbook that can be read: {error}", path=path, error=str(error)[:160]) from None
    if not sheets:
        raise DataError("data: {file} has no usable row.", file=path)
    return sheets, others


def _plain(header: list[str]) -> list[str]:
    """The names of a header as they are in the sheet."""
    return ["" if name == f"column {i}" else name for i, name in enumerate(header, 1)]


def _rows(sheet: Any) -> list[tuple[int, list[Any]]]:
    """(line, cells) of each row that holds something."""
    rows = [[_cell(x) for x in row] for row in sheet.to_python(skip_empty_area=False)]
    return [(line, row) for line, row in enumerate(rows, 1) if any(x is not None for x in row)]


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer() and not _is_long(value):
        return int(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value


def _is_long(value: Any) -> bool:
    """A number whose digits Excel cannot hold; it stays a float, so that it does not look exact."""
    return isinstance(value, float) and LONGEST <= abs(value) < float("inf") and value.is_integer()


def _as_name(value: Any) -> str:
    return "" if value is None else str(value)


def _without_empty_end(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names = names[:-1]
    return names
