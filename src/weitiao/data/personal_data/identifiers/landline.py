"""Landline numbers of mainland China: area code and 7 or 8 digits, with an extension or without."""

import re

from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of, is_other_number
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[PHONE]", "[电话]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
AREA = r"(?:10|2[0-57-9]|[3-9][0-9]{2})"
PATTERN = re.compile(
    rf"[(0-9]{FIRST}(?:(?<=[(])0{AREA}\)[ -]?|(?<=0){AREA}(?P<gap>[ -]{{0,2}})"
    rf"|(?P<local>(?<=[2-8])[0-9]{{2,3}}[ -]?[0-9]{{4}})"
    rf"|(?<=\+86[ -][1-9])(?:(?<=1)0|(?<=2)[0-57-9]|(?<=[3-9])[0-9]{{2}})[ -])"
    rf"(?(local)|[2-8][0-9]{{2,3}}[ -]?[0-9]{{4}})(?:(?:转|-|ext\.?| x)[ ]?[0-9]{{1,5}})?{END}(?![ -][0-9])"
)
WORDS = re.compile(r"电话|座机|热线|传真|致电|拨打|联系方式|(?<![A-Za-z])tel(?![A-Za-z])|phone|fax|call", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with an area code that is set apart, or with any such word before it."""
    if is_other_number(match):
        return None
    if context(match, WORDS, 8):
        return True
    if match["local"] is not None:
        return None
    return match["gap"] != "" or None


def stand_in(value: str, key: Key) -> str:
    """The area code stays; the number starts with 0, which no local number does."""
    area = re.match(rf"\(?0{AREA}(?=[) -]*[2-8])\)?[ -]*|[1-9][0-9]{{1,2}}[ -](?=[2-8])", value)
    position = area.end() if area else 0
    number = digits_of(value[position:])
    draw = key.draw("landline", digits_of(value))
    return value[:position] + "".join(_shaped(value[position:], "0" + draw.text(len(number))))


def _shaped(value: str, digits: str) -> str:
    others = iter(digits)
    return "".join(next(others) if x.isdigit() else x for x in value)
