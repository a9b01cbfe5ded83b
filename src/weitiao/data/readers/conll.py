"""CoNLL columns: the first column is the token, the last its tag; a blank line ends a sentence.

    EU  NNP  B-NP  B-ORG          columns are separated by tabs, or by spaces where there is no tab
    rejects ...

Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task", sec. 2.1. -DOCSTART- lines are skipped,
and so are comments ("# id 7") before a sentence.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.records import Record, lines_of

ENDINGS = (".conll", ".bio")
TAG = re.compile(r"O|[A-Z]-.+")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per sentence, with the columns `tokens` and `tags` (only `tokens` where the file has one column), located
    at its first line. A sentence with an unreadable line is a bad row as a whole, named by that line."""
    lines = lines_of(path, encoding)
    for blank, group in groupby(lines, key=lambda x: isinstance(x[1], str) and _is_blank(x[1])):
        if not blank:
            yield _sentence(list(group))


def _is_blank(line: str) -> bool:
    return not line.strip(" \t\r\n") or line.startswith("-DOCSTART-")


def _columns(line: str) -> list[str]:
    if "\t" in line:
        return [x.strip(" ") for x in line.strip("\r\n").split("\t")]
    return re.split(" +", line.strip(" \r\n"))


def _is_comment(line: str | BadRow, last: str | BadRow) -> bool:
    """A line as "# id 7" at the start of a sentence; not the token #, which has columns and a tag as the others."""
    if isinstance(line, BadRow) or isinstance(last, BadRow) or not line.startswith("#"):
        return False
    columns, others = _columns(line), _columns(last)
    return len(columns) != len(others) or (TAG.fullmatch(others[-1]) is not None and not TAG.fullmatch(columns[-1]))


def _sentence(lines: list[tuple[SourceLocation, str | BadRow]]) -> Record | BadRow:
    rows: list[list[str]] = []
    while len(lines) > 1 and _is_comment(lines[0][1], lines[-1][1]):
        lines = lines[1:]
    where = _together(lines)
    for place, line in lines:
        if isinstance(line, BadRow):
            return replace(line, where=replace(where, line=place.line))
        columns = _columns(line)
        if rows and len(columns) != len(rows[0]):
            reason = Message(
                "{n} columns, but the first line of the sentence has {expected}", n=len(columns), expected=len(rows[0])
            )
            return BadRow(replace(where, line=place.line), reason, line[:200], "conll")
        rows.append(columns)
    if len(rows) > 2 and len(rows[0]) > 2 and [row[0] for row in rows] == [str(i) for i in range(1, len(rows) + 1)]:
        reason = Message(
            "the first column counts the words (1, 2, 3 ...); it must hold the tokens, and the last one the tags"
        )
        return BadRow(where, reason, str(lines[0][1])[:200], "conll")
    tokens, tags = [row[0] for row in rows], [row[-1] for row in rows]
    return Record(where, {"tokens": tokens, **({"tags": tags} if len(rows[0]) > 1 else {})})


def _together(lines: Sequence[tuple[SourceLocation, str | BadRow]]) -> SourceLocation:
    """The place of a sentence: that of its first line, and the bytes of all."""
    lengths = [where.length for where, _ in lines]
    return replace(lines[0][0], length=None if None in lengths else sum(x or 0 for x in lengths))
