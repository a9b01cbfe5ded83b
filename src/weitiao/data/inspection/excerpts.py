"""Rows as a report shows them: short, on one line, and without personal data or secrets."""

import re
from typing import Any

from weitiao.data.personal_data.replacement import replace_personal
from weitiao.data.personal_data.search import find_personal

CHARACTERS = 160
MARGIN = 20_000  # characters beyond what is shown that are looked through: a private key has thousands
BEGUN = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*|[!-~]{20,}\Z", re.DOTALL)
"""What may be the beginning of a secret in a text that was cut off: a key without its end, a word up to the cut."""
PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32)} | {
    code: f"<U+{code:04X}>" for code in (*range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Of what a terminal obeys, and of what turns the order of a line around."""
SPACES = re.compile(r"\s+")


def excerpt(text: str, characters: int = CHARACTERS) -> str:
    """The beginning of a text, with everything that may be personal masked.

    >>> excerpt("电话13812345678，谢谢")
    '电话[手机号]，谢谢'
    >>> excerpt("\\x1b[2Jgone")
    '␛[2Jgone'
    """
    return around(text, 0, characters, 0)


def cut_excerpt(text: str, cut: int = 200) -> str:
    """An excerpt of a text that was cut off after `cut` characters, where half a secret may stand."""
    kept = text if len(text) < cut and "PRIVATE KEY-----" not in text else BEGUN.sub("…", text)
    return excerpt(kept)


def masked_names(value: Any) -> Any:
    """Strings in lists and mappings (classes, tasks) without personal data; most are shown as they are.

    >>> masked_names([["good", 3], ["13812345678", 1]])
    [['good', 3], ['[MOBILE]', 1]]
    """
    if isinstance(value, str):
        return excerpt(value) if find_personal(value) else value.translate(PICTURES)
    if isinstance(value, dict):
        return {key: masked_names(x) for key, x in value.items()}
    return [masked_names(x) for x in value] if isinstance(value, (list, tuple)) else value


def end_of(text: str, characters: int = CHARACTERS // 2) -> str:
    """The end of a text, masked.

    >>> end_of("one two three", 9)
    '…two three'
    """
    return around(text.rstrip(), max(0, len(text.rstrip()) - characters), len(text), 0)


def around(text: str, start: int, end: int, characters: int = CHARACTERS // 4) -> str:
    """A place in a text with what is beside it, masked."""
    first, last = max(0, start - characters), min(len(text), end + characters)
    before = max(0, first - MARGIN)
    spans = find_personal(text[before : last + MARGIN])
    for x in spans:  # no half of a number is shown
        first = before + x.start if before + x.start < first < before + x.end else first
        last = before + x.end if before + x.start < last < before + x.end else last
    moved = [
        type(x)(before + x.start - first, before + x.end - first, x.kind, x.certain)
        for x in spans
        if first <= before + x.start and before + x.end <= last
    ]
    line = SPACES.sub(" ", replace_personal(text[first:last], moved, "mask")).strip().translate(PICTURES)
    return f"{'…' if text[:first].strip() else ''}{line}{'…' if text[last:].strip() else ''}"
