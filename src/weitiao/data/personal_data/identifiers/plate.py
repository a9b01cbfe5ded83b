"""Number plates of mainland China (GA 36-2018), those of electric cars too."""

import re

from weitiao.data.personal_data.identifier import digits_of
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[PLATE]", "[车牌号]")
TRIGGER = re.compile("[A-Z\uff21-\uff3a][·•・. ]?[0-9A-Z\uff10-\uff19\uff21-\uff3a]{5}")
NEEDS_DIGIT = True
LETTER = "[A-HJ-NP-Z]"
PATTERN = re.compile(
    rf"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼]{LETTER}[·•・. ]?"
    rf"(?:[DF][A-HJ-NP-Z0-9][0-9]{{4}}|[0-9]{{5}}[DF]|[A-HJ-NP-Z0-9]{{4}}[A-HJ-NP-Z0-9挂学警港澳])(?![0-9A-Za-z])"
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with two digits; words such as 新ABCDEF have none."""
    return sum(x.isdigit() for x in match[0]) >= 2 or None


def stand_in(value: str, key: Key) -> str:
    """The province stays; its letter becomes I, which is never issued."""
    return value[0] + "I" + key.draw("plate", digits_of(value)).like(value[2:])
