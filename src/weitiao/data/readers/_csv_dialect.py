"""The dialect of a table: its delimiter, how quotes are written, and whether blanks follow a delimiter.

Chosen is the dialect in which the first rows have no error and all as many fields as the header; of several, the first.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from weitiao.core.errors import InvalidValue

DELIMITERS = ",;\t|"
SAMPLE_ROWS, SAMPLE_CHARACTERS = 2000, 500_000  # that are looked at
HIDDEN_QUOTES = re.compile(r'\s+".*"\s*', re.DOTALL)  # a quoted cell that was not read as one, for the blank before it
SEPARATOR = "sep="  # Excel's first line


@dataclass(frozen=True)
class Dialect:
    """How the cells of a table are separated and quoted."""

    delimiter: str
    escape: str | None = None
    skip_blanks: bool = False
    quoted: bool = True

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str] | str]]:
        """(line, cells) of each row; where a row is broken, what is wrong with it. Takes no line before it is needed."""
        rows = csv.reader(
            lines,
            delimiter=self.delimiter,
            escapechar=self.escape,
            doublequote=self.escape is None,
            skipinitialspace=self.skip_blanks,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            line = rows.line_num + 1
            try:
                yield line, next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, str(error)


def choose_dialect(text: str, usual: str) -> Dialect:
    """The dialect of a table.

    Args:
        usual: the delimiter that the file name's ending says.

    Raises:
        InvalidValue: the first line says another delimiter than one character.
    """
    if text[: len(SEPARATOR)].lower() == SEPARATOR:
        delimiter = text.splitlines()[0][len(SEPARATOR) :]
        if len(delimiter) != 1 or delimiter in "\r\n\"'":
            raise InvalidValue("the line sep= names no delimiter of one character")
        return Dialect(delimiter)
    delimiters = usual + DELIMITERS.replace(usual, "")
    escapes = (None, "\\") if '\\"' in text else (None,)
    candidates = [Dialect(x, escape, blanks) for blanks in (False, True) for escape in escapes for x in delimiters]
    sample = text[:SAMPLE_CHARACTERS]
    return max([*candidates, Dialect("\t", quoted=False)], key=lambda x: _fit(x, sample))


def _fit(dialect: Dialect, text: str) -> float:
    """The share of the first rows that have as many fields as the header; 0 if that has one field."""
    width, rows, fitting = 0, 0, 0
    for _, row in dialect.rows(io.StringIO(text, newline="")):
        if rows > SAMPLE_ROWS:
            break
        if row == []:
            continue
        width = width or (len(row) if isinstance(row, list) else 1)
        rows += 1
        fitting += isinstance(row, list) and len(row) == width and not any(HIDDEN_QUOTES.fullmatch(x) for x in row)
    return fitting / rows if rows and width > 1 else 0.0
