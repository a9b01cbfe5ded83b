"""Rows through the rules of a source's `cleaners`, in their order: what each changed, and which rows it leaves out.

The rules see the texts of a row as the rules before them left them. A row of which a rule would leave an empty text is left
out, with the rule's name. A row never depends on another one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weitiao.core.cleaner import Cleaner, RowCleaner, TextCleaner, TextPart
from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.data.columns import ColumnMapping, is_blank
from weitiao.data.records import Record
from weitiao.data.text_parts import text_parts, with_texts

EMPTY = Message("nothing is left of {field}")


@dataclass(frozen=True)
class Change:
    """What one rule did to one text."""

    rule: str
    field: str
    before: str
    after: str


@dataclass(frozen=True)
class CleanedRow:
    """A row behind all rules."""

    fields: dict[str, Any]
    changes: tuple[Change, ...] = ()
    refusal: tuple[str, Message] | None = None
    """The rule that leaves it out, and why."""
    hints: tuple[tuple[str, Message], ...] = ()
    """Rules that only point at it."""

    def audit(self, where: SourceLocation) -> Iterator[dict[str, Any]]:
        """A record of each change, hint and refusal, with the text as it was."""
        position = {"file": where.file, "line": where.line}
        for x in self.changes:
            yield {**position, "rule": x.rule, "field": x.field, "before": x.before, "after": x.after}
        for rule, reason in self.hints:
            yield {**position, "rule": rule, "hint": str(reason)}
        if self.refusal is not None:
            yield {**position, "rule": self.refusal[0], "left_out": str(self.refusal[1])}


@dataclass
class RuleCounts:
    """How many rows each rule touched."""

    rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    hinted: Counter[str] = field(default_factory=Counter)

    def add(self, row: CleanedRow) -> None:
        """Count a row; each rule once."""
        self.rows += 1
        self.changed.update({x.rule for x in row.changes})
        self.hinted.update(rule for rule, _ in row.hints)
        if row.refusal is not None:
            self.left_out[row.refusal[0]] += 1

    def merge(self, other: "RuleCounts") -> None:
        """Add the counts of other rows."""
        self.rows += other.rows
        for mine, theirs in zip(self._counters(), other._counters()):
            mine.update(theirs)

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.changed, self.left_out, self.hinted

    def as_json(self) -> dict[str, Any]:
        return {name: dict(sorted(getattr(self, name).items())) for name in ("changed", "left_out", "hinted")}

    @classmethod
    def from_json(cls, rows: int, record: Mapping[str, Mapping[str, int]]) -> "RuleCounts":
        return cls(rows, *(Counter(record[name]) for name in ("changed", "left_out", "hinted")))

    def lines(self, cleaners: Sequence[str]) -> Iterator[Message]:
        """One line for each rule, in their order; also for those that found nothing."""
        for rule in dict.fromkeys((*cleaners, *self.changed, *self.left_out)):
            parts = {"rule": rule, "total": self.rows}
            if n := self.changed[rule]:
                yield Message("{rule}: {n:,} of {total:,} rows changed", n=n, **parts)
            if n := self.left_out[rule]:
                yield Message("{rule}: {n:,} of {total:,} rows left out", n=n, **parts)
            if n := self.hinted[rule]:
                yield Message("{rule}: {n:,} of {total:,} rows to look at", n=n, **parts)
            if not self.changed[rule] + self.left_out[rule] + self.hinted[rule]:
                yield Message("{rule}: none of {total:,} rows", **parts)


@dataclass
class FileCleaning:
    """The rows of one file, cleaned one by one."""

    file: str
    cleaners: Sequence[Cleaner]
    mapping: ColumnMapping
    counts: RuleCounts = field(default_factory=RuleCounts)
    audit: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_cleaners(self.cleaners, self.mapping, self.file)

    def rows(self, items: Iterable[Record | BadRow]) -> Iterator[Record | BadRow]:
        """The rows that stay; what is no row passes by."""
        for item in items:
            if isinstance(item, BadRow):
                yield item
                continue
            row = clean_row(item.fields, self.mapping, self.cleaners)
            self.counts.add(row)
            self.audit += row.audit(item.where)
            if row.refusal is None:
                yield replace(item, fields=row.fields) if row.changes else item

    def findings(self) -> Iterator[Finding]:
        """What each rule did."""
        for line in self.counts.lines([x.name for x in self.cleaners]):
            yield Finding("cleaners", "fine", Message("{file}: {line}", file=self.file, line=line))


def check_cleaners(cleaners: Sequence[Cleaner], mapping: ColumnMapping, file: str) -> None:
    """Whether the rules can work on a file.

    Raises:
        DataError: a rule changes texts whose characters other columns count.
        RecipeError: a package that a rule needs is not installed.
    """
    changing = [x.name for x in cleaners if isinstance(x, TextCleaner)]
    if mapping.has_offsets and changing:
        raise DataError(
            "{file}: cleaners {names} change texts, and {columns} counts characters of them: clean the texts before they "
            "are marked. Rules that leave rows out are possible (length, language, quality ...).",
            file=file,
            names=", ".join(changing),
            columns=mapping.description,
        )
    for cleaner in cleaners:
        cleaner.check()


def clean_row(fields: dict[str, Any], mapping: ColumnMapping, cleaners: Sequence[Cleaner]) -> CleanedRow:
    """A row behind the rules, in their order; a rule that leaves it out is the last."""
    parts = text_parts(fields, mapping)
    changes: list[Change] = []
    hints: list[tuple[str, Message]] = []
    refusal: tuple[str, Message] | None = None
    for cleaner in cleaners:
        if isinstance(cleaner, TextCleaner):
            parts, refusal = _changed(parts, cleaner, changes)
        elif isinstance(cleaner, RowCleaner) and (reason := cleaner.refusal(parts)) is not None:
            if cleaner.action == "hint":
                hints.append((cleaner.name, reason))
            else:
                refusal = cleaner.name, reason
        if refusal is not None:
            return CleanedRow(fields, tuple(changes), refusal, tuple(hints))
    if not changes:
        return CleanedRow(fields, hints=tuple(hints))
    new = with_texts(fields, {x.path: x.text for x in parts})
    return CleanedRow(new, tuple(changes), None, tuple(hints))


def _changed(
    parts: Sequence[TextPart], cleaner: TextCleaner, changes: list[Change]
) -> tuple[list[TextPart], tuple[str, Message] | None]:
    """The texts behind one rule, and why the row is left out if one of them would be empty."""
    new: list[TextPart] = []
    for part in parts:
        text = cleaner.clean(part.text)
        if text != part.text:
            if is_blank(text):
                return list(parts), (cleaner.name, Message(EMPTY, field=part.field))
            changes.append(Change(cleaner.name, part.field, part.text, text))
            part = replace(part, text=text)
        new.append(part)
    return new, None
