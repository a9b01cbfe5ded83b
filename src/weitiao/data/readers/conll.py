"""CoNLL columns: the first column is the token, the last its tag; a blank line ends a sentence.

    EU  NNP  B-NP  B-ORG          columns are separated by tabs, or by spaces where there is no tab
    rejects ...

Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task", sec. 2.1. -DOCSTART- lines are skipped.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.records import Record, lines_of

ENDINGS = (".conll", ".bio")


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per sentence, with the columns `tokens` and `tags` (only `tokens` where the file has one column), located
    at its first line. A sentence with an unreadable line is a bad row as a whole."""
    lines = lines_of(path, encoding)
    for blank, group in groupby(lines, key=lambda x: isinstance(x[1], str) and _is_blank(x[1])):
        if not blank:
            yield _sentence(list(group))


def _is_blank(line: str) -> bool:
    return not line.strip(" \t\r\n") or line.startswith("-DOCSTART-")


def _sentence(lines: list[tuple[SourceLocation, str | BadRow]]) -> Record | BadRow:
    rows: list[list[str]] = []
    for where, line in lines:
        if isinstance(line, BadRow):
            return line
        columns = (
            [x.strip(" ") for x in line.strip("\r\n").split("\t")] if "\t" in line else re.split(" +", line.strip(" "))
        )
        if rows and len(columns) != len(rows[0]):
            reason = Message(
                "{n} columns, but the first line of the sentence has {expected}", n=len(columns), expected=len(rows[0])
            )
            return BadRow(where, reason, line[:200])
        rows.append(columns)
    tokens, tags = [row[0] for row in rows], [row[-1] for row in rows]
    return Record(lines[0][0], {"tokens": tokens, **({"tags": tags} if len(rows[0]) > 1 else {})})
