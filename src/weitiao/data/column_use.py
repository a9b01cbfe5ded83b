"""Which columns of a file are read, and what the others hold: so that nothing is passed over in silence.

    train.jsonl: question -> answer; not read: context (text in 24 of 24 rows), id

A column that changes what a row means (`rejected`, `tools`, `label` of a pair ...) and that nothing reads refuses the file.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from weitiao.core.example import EVALUATION_COLUMNS, ExtractiveQA, Pair, TextLabel, TokenTags
from weitiao.core.finding import Finding
from weitiao.core.messages import Message, joined
from weitiao.data.column_names import (
    BOOLEAN_LABELS,
    CONTEXT_LIKE,
    FLAGS,
    MEANINGS,
    METADATA,
    PAIR_LABELS,
    REVIEWS,
    SPLITS,
    WEIGHTS,
    is_one_of,
    plain_name,
)
from weitiao.data.columns import NO_INPUT, ColumnMapping, is_empty, truth_of, unpacked
from weitiao.data.records import Record

MAX_NAMED = 8  # columns that a line names; values of a column that are told
HELD_OUT = {
    "test",
    "dev",
    "val",
    "valid",
    "validation",
    "eval",
    "evaluation",
    "holdout",
    "测试",
    "测试集",
    "验证",
    "验证集",
}
NO_MATCH = {  # classes of pairs that do not belong together
    "no", "n", "irrelevant", "not_relevant", "unrelated", "different", "not_duplicate", "non_duplicate", "no_match",
    "contradiction", "neutral", "not_entailment", "negative", "不相关", "不匹配", "不相似", "不同", "否", "矛盾", "中立",
}  # fmt: skip
PLACEHOLDERS = {  # texts that stand for a missing value, spelled as programs write them
    "nan", "NaN", "NAN", "null", "NULL", "None", "N/A", "n/a", "#N/A", "<NA>", "NaT", "undefined", "<nooutput>", *NO_INPUT,
}  # fmt: skip
NO_WORDS = re.compile(r"(\w+:)?/{1,2}\S*|[\d\s.,:/+-]*|[0-9a-fA-F-]{16,}")  # links, numbers, dates, hashes


@dataclass
class ColumnUse:
    """The columns of one file, over all rows that were read."""

    file: str
    mapping: ColumnMapping
    explicit: bool
    """The recipe names the columns."""
    rows: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    """Column that is not read -> rows in which it holds something."""
    texts: Counter[str] = field(default_factory=Counter)
    """Of these, rows in which it holds words."""
    excluded: Counter[str] = field(default_factory=Counter)
    """Column -> rows that it marks as not to be trained on."""
    placeholders: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(column that is read, "nan" or its like) -> rows."""
    _effects: dict[str, tuple[Any, int]] = field(default_factory=dict)
    _splits: dict[str, set[str]] = field(default_factory=dict)
    _roles: dict[str, str] = field(default_factory=dict)

    def count(self, record: Record) -> bool:
        """Count the columns of a row; False if the row says that it is not to be trained on."""
        self.rows += 1
        marked = ""
        if self.mapping.unread_keys is not None:
            self.filled.update(set(self.mapping.unread_keys(record.fields)))
        for name, value in record.fields.items():
            if is_empty(value):
                continue
            if name in EVALUATION_COLUMNS and name not in self.mapping.reads:
                continue
            if name in self.mapping.reads:
                is_class = self.mapping.example_type is TextLabel and name != self.mapping.reads[0]  # see label_checks
                if isinstance(value, str) and len(value) < 16 and value.strip() in PLACEHOLDERS and not is_class:
                    self.placeholders[name, value.strip()] += 1
                continue
            self.filled[name] += 1
            self.texts[name] += _has_words(value)
            if name not in self._roles:
                self._roles[name] = self._role(name)
            role = self._roles[name]
            if (role == "weight" and _number(value) == 0) or (role == "flag" and _is_false(value)):
                marked = name
            elif role == "split" and len(splits := self._splits.setdefault(name, set())) < MAX_NAMED:
                splits.add(str(value).strip()[:40])
            elif role and name not in self._effects and self._changes_meaning(name, role, unpacked(value)):
                self._effects[name] = value, record.where.line
        if marked:
            self.excluded[marked] += 1
        return not marked

    def _role(self, name: str) -> str:
        """What a column that is not read may be: flag, weight, split, label, review, meaning, or ""."""
        kind, plain = self.mapping.example_type, plain_name(name)
        if is_one_of(name, MEANINGS.get(kind, ())):
            return "label" if kind is Pair and is_one_of(name, PAIR_LABELS) or plain in BOOLEAN_LABELS else "meaning"
        if plain in REVIEWS and kind in (TextLabel, TokenTags):
            return "review"
        names = {"flag": FLAGS, "weight": WEIGHTS, "split": SPLITS}
        return next((role for role, columns in names.items() if plain in columns), "")

    def _changes_meaning(self, name: str, role: str, cell: Any) -> bool:
        """Whether a cell that is not read says something else of its row than what is trained on."""
        match role:
            case "weight":
                return _number(cell) not in (None, 1)
            case "label" if self.mapping.example_type is Pair:
                return _number(cell) not in (None, 1) or (isinstance(cell, str) and plain_name(cell) in NO_MATCH)
            case "label":  # of an answer, in data for KTO
                return truth_of(cell) is False
            case "review":
                return cell in ("reject", "ignore")
            case "meaning" if self.mapping.example_type is ExtractiveQA:
                return truth_of(cell) is (plain_name(name) != "answerable")
            case "meaning":
                return cell not in ([], {}, ()) and truth_of(cell) is not False
        return False

    @property
    def unread(self) -> list[str]:
        """Columns that hold something and that nobody looks at: those with words first."""
        names = (name for name in self.filled if name not in self.excluded)
        return sorted(names, key=lambda name: (not self._has_texts(name), not is_one_of(name, CONTEXT_LIKE)))

    def _has_texts(self, name: str) -> bool:
        return self.texts[name] > 0 and not is_one_of(name, METADATA)

    def notices(self) -> Iterator[Message]:
        """What everybody should know before step 1."""
        if self.unread:
            names = self.unread[:MAX_NAMED]
            rest = [Message("{n} more", n=len(self.unread) - MAX_NAMED)] if len(self.unread) > MAX_NAMED else []
            columns = joined(", ", [*(self._described(name) for name in names), *rest])
            mapping = self.mapping.description
            yield Message("{file}: {mapping}; not read: {columns}", file=self.file, mapping=mapping, columns=columns)
        for name, n in self.excluded.items():
            yield Message(
                "{file}: {n:,} of {total:,} rows are left out: column {column!r} marks them as not to be trained on",
                file=self.file,
                n=n,
                total=self.rows,
                column=name,
            )

    def _described(self, name: str) -> Message:
        if not self._has_texts(name):
            return Message("{name}", name=name or '""')
        return Message("{name} (text in {n:,} of {total:,} rows)", name=name, n=self.texts[name], total=self.rows)

    def findings(self) -> Iterator[Finding]:
        """Columns that change what rows mean, placeholder words, and what is not read."""
        for name, (value, line) in self._effects.items():
            message = Message(
                "{file}, line {line}: column {column!r} is {value}, which changes what the row means, and it is not read. "
                "Name it in `columns`, remove it, or remove such rows",
                file=self.file,
                line=line,
                column=name,
                value=str(value)[:60],
            )
            harmless = self.explicit and self.mapping.example_type is not Pair and not is_one_of(name, WEIGHTS)
            yield Finding("columns", "warning" if harmless else "error", message)
        yield from self._warnings()
        for message in self.notices():
            yield Finding("columns", "fine", message)

    def _warnings(self) -> Iterator[Finding]:
        """Files with all splits in one, and placeholder words."""
        for name, values in self._splits.items():
            if len(values) > 1 and any(value.casefold() in HELD_OUT for value in values):
                message = Message(
                    "{file}: column {column!r} divides the rows ({values}), and all of them are read: one file for each",
                    file=self.file,
                    column=name,
                    values=", ".join(sorted(values)),
                )
                yield Finding("columns", "warning", message)
        for (name, word), n in self.placeholders.items():
            message = Message(
                "{file}: column {column!r} is {word!r} in {n:,} of {total:,} rows, which usually means that it is empty",
                file=self.file,
                column=name,
                word=word,
                n=n,
                total=self.rows,
            )
            yield Finding("placeholders", "fine" if word.casefold() in NO_INPUT else "warning", message)

    def as_json(self) -> dict[str, Any]:
        """What the Run records: how many rows hold something in each column that is not read."""
        return {
            "reads": list(self.mapping.reads),
            "rows": self.rows,
            "not_read": {name: {"rows": self.filled[name], "text": self.texts[name]} for name in self.unread},
            "left_out": dict(self.excluded),
            "placeholders": {f"{name}: {word}": n for (name, word), n in self.placeholders.items()},
        }


def _number(value: Any) -> float | None:
    """A number or a flag, also as text; None for anything else."""
    truth = truth_of(value)
    if truth is not None:
        return float(truth)
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _is_false(value: Any) -> bool:
    """A flag that is off; a loss of 0.0 is a number."""
    return truth_of(value) is False and not isinstance(value, float)


def _has_words(value: Any) -> bool:
    """Text of several words (in Chinese, several characters), not a link, a number or a date."""
    if not isinstance(value, str):
        return False
    text = value.strip()[:300]
    several = len(text.split()) > 1 or sum(x >= "\u2e80" for x in text) > 3
    return several and not NO_WORDS.fullmatch(text)
