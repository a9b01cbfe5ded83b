"""QQ numbers, after a word that names QQ."""

import re

from weitiao.data.personal_data.identifier import UNIT, AnyOf
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[QQ]", "[QQ号]")
TRIGGER = AnyOf("QQ", "qq", "Qq", "ＱＱ", "ｑｑ", "扣扣", "企鹅")
NEEDS_DIGIT = True
PATTERN = re.compile(
    r"(?<![A-Za-z])(?:[Qq]{2}|扣扣|企鹅)(?:号码?|群号?|账号|帐号)?[ ]?(?:[:是为]|is|number)?[ ]?"
    r"(?P<value>[1-9][0-9]{4,10})(?![0-9A-Za-z@]|\.[0-9])"
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain, unless a unit follows."""
    return None if UNIT.match(match.string, match.end()) else True


def stand_in(value: str, key: Key) -> str:
    """Starts with 0, which no QQ number does."""
    return "0" + key.draw("qq", value).text(len(value) - 1)
