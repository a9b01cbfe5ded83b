"""Social security numbers of the United States."""

import re

from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of, is_other_number
from weitiao.data.personal_data.stand_ins import Key, reshaped

LABELS = ("[SSN]", "[社会安全号]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
PATTERN = re.compile(
    rf"[0-8]{FIRST}(?:(?<!0)|(?!00))(?:(?<!6)|(?!66))[0-9]{{2}}(?P<gap>[- ]?)(?!00)[0-9]{{2}}"
    rf"(?P=gap)(?!0000)[0-9]{{4}}{END}(?!-[0-9])"
)
WORDS = re.compile(r"(?<![A-Za-z])ssn(?![A-Za-z])|social security|社会安全|社保号", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with hyphens, or beside a word."""
    if is_other_number(match):
        return None
    return match["gap"] == "-" or context(match, WORDS, 32) or None


def stand_in(value: str, key: Key) -> str:
    """Starts with 000, which is never issued."""
    return reshaped(value, "000" + key.draw("ssn", digits_of(value)).text(6))
