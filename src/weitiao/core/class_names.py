"""Class names as people read them: two that differ only in what nobody sees or means are one class."""

import unicodedata

from weitiao.core.example import plain

SAME = {"true": "1", "false": "0"}


def folded(name: str) -> str:
    """A class name without case, width, spaces, invisible characters, leading zeros and ".0"; true is 1, as in a table.

    >>> folded("Spam\\u200b") == folded("ＳＰＡＭ"), folded("1.0") == folded("TRUE")
    (True, True)
    """
    text = plain("".join(x for x in name if unicodedata.category(x) not in ("Cf", "Cc") or x.isspace()))
    whole, _, zeros = text.partition(".")
    digits = whole.removeprefix("-").removeprefix("+")
    if digits.isdecimal() and not zeros.strip("0"):
        text = ("-" if whole.startswith("-") else "") + (digits.lstrip("0") or "0")
    return SAME.get(text, text)
