"""Resident identity card numbers of mainland China (GB 11643-1999): region, date of birth, serial number, check digit.

18 characters, or 15 before 1999, which have no check digit. Spaces and hyphens between the digits do not count.
"""

import re
from datetime import date

from weitiao.data.personal_data.check_digits import resident_id_check
from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of
from weitiao.data.personal_data.stand_ins import Key, reshaped

LABELS = ("[RESIDENT_ID]", "[身份证号]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
PATTERN = re.compile(rf"[1-9]{FIRST}(?:[ -]?[0-9]){{14}}(?:(?:[ -]?[0-9]){{2}}[ -]?[0-9Xx])?{END}")
PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split()  # noqa: SIM905
)
WORDS = re.compile(r"身份证|证件|居民证|resident id|id card|identity card", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with region, date and check digit. Beside a word, 15 digits are certain, a wrong check digit is a hint."""
    value = digits_of(match[0])
    born = value[6:14] if len(value) == 18 else f"19{value[6:12]}"
    if value[:2] not in PROVINCES or not _is_date(born):
        return None
    if len(value) == 18 and resident_id_check(value[:17]) == value[17]:
        return True
    if not context(match, WORDS):
        return None
    return len(value) == 15


def _is_date(digits: str) -> bool:
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).year >= 1900
    except ValueError:
        return False


def stand_in(value: str, key: Key) -> str:
    """Region 99, which there is not; another date; a wrong check digit."""
    number = digits_of(value)
    draw = key.draw("resident_id", number)
    if len(number) == 15:
        return reshaped(value, "99" + draw.text(13))
    born = date.fromordinal(date(1940, 1, 1).toordinal() + draw.number(29_000)).strftime("%Y%m%d")
    first = f"99{draw.text(4)}{born}{draw.text(3)}"
    wrong = str((int(resident_id_check(first).replace("X", "9")) + 1 + draw.number(8)) % 10)
    return reshaped(value, first + wrong)
