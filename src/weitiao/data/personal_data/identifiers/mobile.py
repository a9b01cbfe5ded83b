"""Mobile numbers of mainland China: 11 digits, written together or in groups, with or without +86."""

import re

from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, digits_of, is_other_number
from weitiao.data.personal_data.stand_ins import Key, reshaped

LABELS = ("[MOBILE]", "[手机号]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
NETWORKS = r"(?:3[0-9]|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])"
PATTERN = re.compile(
    rf"1(?:{FIRST}|(?<=\+86.)|(?<=\+86[ -].)|(?<=0086.)|(?<=0086[ -].)"
    rf"|(?<=86.)(?<![0-9A-Za-z]86.)|(?<=86-.)(?<![0-9A-Za-z]86-.))"
    rf"{NETWORKS}(?:(?:[ -]?[0-9]{{4}}){{2}}|[0-9][ -][0-9]{{3}}[ -][0-9]{{4}}|[ -][0-9]{{3}}[ -][0-9]{{5}}"
    rf"|[0-9]{{3}}[ -][0-9]{{5}}){END}"
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain, unless it is called an order number or an amount."""
    return None if is_other_number(match) else True


def stand_in(value: str, key: Key) -> str:
    """11..., which no network has."""
    return reshaped(value, "11" + key.draw("mobile", digits_of(value)).text(9))
