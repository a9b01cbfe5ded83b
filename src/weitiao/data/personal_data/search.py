"""Find personal data and secrets in a text.

A quick look decides which patterns are tried: most texts have no five digits close together, no @ and no long token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from weitiao.core.registry import find_module, names
from weitiao.data.personal_data.identifier import AnyOf, Identifier

NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(
    [0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2015, 0x2212, 0xFE63], "-"
) | {0x3000: " ", 0xA0: " "}  # fmt: skip
DIGIT = re.compile("[0-9\uff10-\uff19]")


@dataclass(frozen=True, order=True)
class PersonalSpan:
    """A piece of personal data or a secret."""

    start: int
    """Its first character."""
    end: int
    """The character after its last."""
    kind: str
    """The file's name in identifiers/."""
    certain: bool
    """False for a hint: it may be something else."""


def kinds() -> tuple[str, ...]:
    """All kinds that can be found."""
    return names(Identifier)


def find_personal(text: str, only: Sequence[str] | None = None) -> list[PersonalSpan]:
    """Find personal data and secrets.

    Full-width characters count as half-width ones. Of spans that overlap, a certain one stays, then the longest.

    Args:
        only: kinds to look for; all if None.

    >>> [(x.kind, x.start, x.end) for x in find_personal("电话13812345678，邮箱 li@foo.cn")]
    [('mobile', 2, 13), ('email', 17, 26)]
    """
    has_digit = DIGIT.search(text) is not None
    requested: list[tuple[str, Identifier]] = []
    for trigger, needs_digit, identifiers in _by_trigger(None if only is None else tuple(only)):
        if (has_digit or not needs_digit) and trigger.search(text):
            requested += identifiers
    if not requested:
        return []
    narrow = text.translate(NARROW) if not text.isascii() else text
    spans = []
    for kind, identifier in requested:
        for match in identifier.PATTERN.finditer(narrow):
            grade = identifier.grade(match)
            if grade is not None:
                start, end = _value(match)
                spans.append(PersonalSpan(start, end, kind, grade))
    return _without_overlaps(spans) if len(spans) > 1 else spans


def _value(match: re.Match[str]) -> tuple[int, int]:
    """Where the value is: the named group that is a value, or the whole match."""
    for name in ("value", "own", "after", "titled", "english"):
        if name in match.re.groupindex and match[name] is not None:
            return match.span(name)
    return match.span()


@cache
def _by_trigger(
    only: tuple[str, ...] | None,
) -> tuple[tuple[re.Pattern[str] | AnyOf, bool, list[tuple[str, Identifier]]], ...]:
    """Each trigger, whether it needs a digit, and the kinds that it starts."""
    triggers: dict[tuple[re.Pattern[str] | AnyOf, bool], list[tuple[str, Identifier]]] = {}
    for kind in kinds() if only is None else only:
        identifier = find_module(Identifier, kind)
        triggers.setdefault((identifier.TRIGGER, identifier.NEEDS_DIGIT), []).append((kind, identifier))
    return tuple((*key, identifiers) for key, identifiers in triggers.items())


def _without_overlaps(spans: list[PersonalSpan]) -> list[PersonalSpan]:
    """The best spans, in the order of the text."""
    chosen: list[PersonalSpan] = []
    for span in sorted(spans, key=lambda x: (not x.certain, x.start - x.end, x.start, x.kind)):
        if all(span.end <= x.start or x.end <= span.start for x in chosen):
            chosen.append(span)
    return sorted(chosen)
