"""Phone numbers with + and a country code (ITU-T E.164), but for those of China and North America."""

import re

from weitiao.data.personal_data.identifier import END, FIVE_DIGITS, digits_of
from weitiao.data.personal_data.stand_ins import Key, reshaped

LABELS = ("[PHONE]", "[电话]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
PATTERN = re.compile(r"\+(?<![0-9A-Za-z+]\+)(?!86|9[ -]?9[ -]?9)[2-9](?:[ -]?\(?[0-9]\)?){7,14}" + END)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with the 8 to 15 digits that E.164 allows; a sum such as +12345678 has no group."""
    return len(digits_of(match[0])) <= 15 and (len(digits_of(match[0])) >= 10 or " " in match[0] or "-" in match[0]) or None


def stand_in(value: str, key: Key) -> str:
    """+999, which no country has."""
    number = digits_of(value)
    return reshaped(value, "999" + key.draw("international_phone", number).text(len(number) - 3))
