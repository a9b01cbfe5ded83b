"""A kind of personal data or secret: one file in identifiers/, with these names."""

import re
from typing import Protocol

from weitiao.data.personal_data.stand_ins import Key

FIVE_DIGITS = re.compile("[0-9\uff10-\uff19](?:[^0-9\uff10-\uff19]{0,2}[0-9\uff10-\uff19]){4}")
TOKEN = re.compile("[0-9A-Za-z_+/=.\uff10-\uff19\uff21-\uff3a\uff41-\uff5a-]{16}|密码|口令|-----BEGIN")
"""Five digits close together, and 16 letters or digits in a row: what most texts do not have."""
FIRST = r"(?<![0-9A-Za-z].)(?<![0-9][.-].)"
END = r"(?![0-9A-Za-z])(?![.][0-9])"
r"""What stands after the first character of a number, and after its last one: no letter or digit beside it. Not \b, which
finds no end between a Han character and a digit. A pattern that starts with characters is searched for quickly."""
BEFORE = 16  # characters before a number in which a word tells what it is
OTHER_NUMBER = re.compile(
    r"(?:订单|运单|单号|编号|流水|工号|学号|货号|型号|批号|序列号|条码|条形码|时间戳|金额|合计|总价|价格|售价|营收|收入|销量|产量|人口|版本"
    r"|order|invoice|tracking|serial|sku|item|part|model|timestamp|ticket|case|amount|total|price|revenue|build|version"
    r"|[¥$€£#№])(?:[ ]?(?:号码?|no\.?|number|id))?[\s:=#为是是共约]*$",
    re.IGNORECASE,
)
UNIT = re.compile(
    r"[ ]?(?:元|块|万|亿|千|美元|米|公里|吨|克|公斤|人|次|个|件|字节|毫秒|秒|%|kg\b|km\b|ms\b|bytes\b|USD|RMB|CNY)"
)


class AnyOf:
    """Whether a text has one of some words. In English text `in` is many times quicker than a regular expression."""

    def __init__(self, *words: str) -> None:
        self._pattern = re.compile("|".join(map(re.escape, words)))
        self._ascii = tuple(x for x in words if x.isascii())

    def search(self, text: str) -> bool:
        """Whether it has."""
        if not text.isascii():
            return self._pattern.search(text) is not None
        for word in self._ascii:  # noqa: SIM110 (a generator takes three times as long)
            if word in text:
                return True
        return False


class Identifier(Protocol):
    """What search and replacement read of such a file."""

    LABELS: tuple[str, str]
    """What masks it in an English and in a Chinese text."""
    TRIGGER: re.Pattern[str] | AnyOf
    """What a text must have for the pattern to be tried: quick to look for, and also in full-width characters."""
    NEEDS_DIGIT: bool
    """Whether a text without any digit has none of this kind."""
    PATTERN: re.Pattern[str]
    """Of a text whose full-width characters are half-width. The group `value` is what is found, or else the whole match."""

    def grade(self, match: re.Match[str]) -> bool | None:
        """True: certain; False: a hint; None: something else."""
        ...

    def stand_in(self, value: str, key: Key) -> str:
        """Another value of the same shape that cannot be real: the same one for the same value and key."""
        ...


def context(match: re.Match[str], words: re.Pattern[str], length: int = BEFORE) -> bool:
    """Whether one of the words stands shortly before what was found."""
    start = match.start("value") if "value" in match.re.groupindex else match.start()
    return bool(words.search(match.string, max(0, start - length), start))


def is_other_number(match: re.Match[str]) -> bool:
    """Whether the characters before or after say that it is an order number, an amount or the like."""
    return bool(
        OTHER_NUMBER.search(match.string[max(0, match.start() - BEFORE) : match.start()])
        or UNIT.match(match.string, match.end())
    )


def digits_of(value: str) -> str:
    """The letters and digits of a value, upper case.

    >>> digits_of("138-1234 5678")
    '13812345678'
    """
    return "".join(x for x in value if x.isalnum()).upper()
