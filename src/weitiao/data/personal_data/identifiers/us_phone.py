"""Phone numbers of the United States and Canada (North American Numbering Plan), without those that are free of charge."""

import re

from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of, is_other_number
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[PHONE]", "[电话]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
FREE = "8(?:00|33|44|55|66|77|88)|400"  # of charge: nobody's own
AREA, EXCHANGE = rf"(?!{FREE})[2-9](?!11)[0-9]{{2}}", r"(?!555[-. ]?01)[2-9](?!11)[0-9]{2}"
AREA_AFTER = r"(?<=[2-9])(?!11)(?!(?<=8)(?:00|33|44|55|66|77|88))(?!(?<=4)00)[0-9]{2}"
PATTERN = re.compile(
    rf"[(2-9](?:{FIRST}|(?<=\+1.)|(?<=\+1[-. ].)|(?<=1[-.].)(?<![0-9A-Za-z]1[-.].))"
    rf"(?:(?<=[(]){AREA}\)[ -]?{EXCHANGE}[-. ][0-9]{{4}}"
    rf"|{AREA_AFTER}(?P<gap>[-. ]){EXCHANGE}(?P=gap)[0-9]{{4}}|(?P<together>{AREA_AFTER}{EXCHANGE}[0-9]{{4}})){END}"
)
WORDS = re.compile(
    r"phone|call|(?<![A-Za-z])tel(?![A-Za-z])|cell|mobile|text|fax|contact|reach|dial|电话|手机", re.IGNORECASE
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain in groups; ten digits together only beside a word."""
    if is_other_number(match):
        return None
    if match["together"] or match["gap"] == " ":
        return context(match, WORDS) or None
    return True


def stand_in(value: str, key: Key) -> str:
    """555-0100 to 555-0199, which are kept for fiction."""
    number = digits_of(value)
    draw = key.draw("us_phone", number)
    digits = iter(f"{2 + draw.number(8)}{draw.number(9) or 2}{draw.number(10)}55501{draw.text(2)}")
    return "".join(next(digits) if x.isdigit() else x for x in value)
