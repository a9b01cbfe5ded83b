"""Passport numbers: those of China by their form, others beside a word."""

import re

from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[PASSPORT]", "[护照号]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
PATTERN = re.compile(
    rf"[A-Z1-9]{FIRST}(?:(?P<chinese>(?<=[EG])[0-9]{{8}}|(?<=E)[A-HJ-NP-Z][0-9]{{7}}|(?<=[DSP])[EZ]?[0-9]{{7}})"
    rf"|(?<=[A-WYZ])[A-Z]?[0-9]{{6,8}}|(?<=[1-9])[0-9]{{8}}){END}"
)
WORDS = re.compile(r"护照|通行证|passport|travel document", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain beside a word; the form alone is a hint."""
    if context(match, WORDS, 24):
        return True
    return False if match["chinese"] else None


def stand_in(value: str, key: Key) -> str:
    """Starts with X or 0."""
    draw = key.draw("passport", digits_of(value))
    return ("X" if value[0].isalpha() else "0") + draw.like(value[1:])
