"""Class names as people read them: two that differ only in what nobody sees or means are one class."""

import unicodedata

from weitiao.core.example import plain

SAME = {"true": "1", "false": "0"}


def folded(name: str) -> str:
    """A class name without case, width, spaces, invisible characters and ".0"; true is 1, as spreadsheets have it.

    >>> folded("Spam\\u200b") == folded("ＳＰＡＭ"), folded("1.0") == folded("TRUE")
    (True, True)
    """
    text = plain("".join(x for x in name if unicodedata.category(x) not in ("Cf", "Cc") or x.isspace()))
    whole, point, zeros = text.partition(".")
    text = whole if point and whole.lstrip("+-").isdecimal() and not zeros.strip("0") else text
    return SAME.get(text, text)
