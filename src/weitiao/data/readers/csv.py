"""CSV and TSV with a header line; separated by , ; | or tabs. Quoted fields may contain line breaks; a row of another width
is a bad row."""

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.readers._csv_dialect import SAMPLE_CHARACTERS, SEPARATOR, Dialect, choose_dialect
from weitiao.data.records import Record, TextDecoder
from weitiao.data.table_header import column_names
from weitiao.data.unpacking import open_file, read_file

ENDINGS = (".csv", ".tsv")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per row, with the names of the header.

    Raises:
        DataError: the header is unusable, or cannot be decoded.
    """
    csv.field_size_limit(1 << 30)
    lines = _Lines(path, encoding)
    dialect = _dialect(path, lines)
    header: list[str] | None = None
    for line, row in dialect.rows(lines):
        where, problem = lines.taken(line)
        if problem is not None and header is None:
            raise DataError("{path}: {reason}", path=path, reason=problem.reason)
        if problem is not None:
            yield BadRow(where, problem.reason, problem.excerpt, problem.code)
        elif isinstance(row, str) and header is None:
            raise DataError("{path}, line {line}: the header is not CSV: {error}", path=path, line=line, error=row)
        elif isinstance(row, str):
            yield BadRow(where, Message("not CSV: {error}", error=row), code="csv")
        elif not row or (line == 1 and lines.first[: len(SEPARATOR)].lower() == SEPARATOR):
            continue
        elif header is None:
            header = column_names(path, line, row)
        elif len(row) != len(header):
            reason = Message("{n} fields, but the header has {expected}", n=len(row), expected=len(header))
            yield BadRow(where, reason, ",".join(row)[:200], "width")
        else:
            yield Record(where, dict(zip(header, row)))


def _dialect(path: Path, lines: "_Lines") -> Dialect:
    try:
        return choose_dialect(lines.sample(), "\t" if ".tsv" in path.name.lower() else ",")
    except InvalidValue as error:
        raise DataError("{path}: {reason}", path=path, reason=error.message) from None


class _Lines:
    """The lines of a table, one by one, and the bytes that each row took. A line that cannot be decoded is passed on with
    marks for its bytes, so that its row still ends where it ends."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.decoder = path, TextDecoder(path, encoding)
        self.first = ""
        self._lines = self._decoded()
        self._head: list[tuple[str, int, BadRow | None]] = []
        self._start = self._end = 0
        self._problem: BadRow | None = None

    def sample(self) -> str:
        """The first lines, which are still to come."""
        size = 0
        for line in self._lines:
            self._head.append(line)
            size += len(line[0])
            if size >= SAMPLE_CHARACTERS:
                break
        self._lines = itertools.chain(self._head, self._lines)
        text = "".join(line for line, _, _ in self._head)
        self.first = text[:100]
        return text

    def __iter__(self) -> Iterator[str]:
        for line, length, problem in self._lines:
            self._end += length
            self._problem = self._problem or problem
            yield line

    def taken(self, line: int) -> tuple[SourceLocation, BadRow | None]:
        """The place of the lines since the last call, and the first of them that cannot be decoded."""
        start, length, problem = self._start, self._end - self._start, self._problem
        self._start, self._problem = self._end, None
        where = SourceLocation(str(self.path), line, None if self.decoder.is_wide else start, length or None)
        return where, problem

    def _decoded(self) -> Iterator[tuple[str, int, BadRow | None]]:
        """(line with its end, bytes, what is wrong with it)."""
        if self.decoder.is_wide:
            text = self.decoder.decode(read_file(self.path), SourceLocation(str(self.path), 1, 0))
            if isinstance(text, BadRow):
                raise DataError("{path}: {reason}", path=self.path, reason=text.reason)
            yield from ((line, 0, None) for line in io.StringIO(text, newline=""))
            return
        where = SourceLocation(str(self.path), 1, 0)
        with open_file(self.path) as file:
            for raw in (part for line in file for part in line.splitlines(keepends=True)):
                text = self.decoder.decode(raw, where)
                if isinstance(text, BadRow):
                    yield raw.decode(self.decoder.codec, "surrogateescape"), len(raw), text
                else:
                    yield text, len(raw), None
