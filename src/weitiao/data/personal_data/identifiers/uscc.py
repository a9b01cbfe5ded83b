"""Unified social credit codes of organisations in China (GB 32100-2015), by their check character."""

import re

from weitiao.data.personal_data.check_digits import USCC_CHARACTERS, uscc_check
from weitiao.data.personal_data.identifier import END, FIRST, TOKEN, context
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[USCC]", "[统一社会信用代码]")
TRIGGER = TOKEN
NEEDS_DIGIT = True
PATTERN = re.compile(rf"[1-9ANY]{FIRST}[1-59][0-9]{{6}}[{USCC_CHARACTERS}]{{10}}{END}")
WORDS = re.compile(r"信用代码|税号|税务登记|纳税人|机构代码|(?<![A-Za-z])uscc", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with the right check character and a letter; digits alone only beside a word."""
    code = match[0]
    if uscc_check(code[:17]) != code[17]:
        return None
    return not code.isdigit() or context(match, WORDS) or None


def stand_in(value: str, key: Key) -> str:
    """Region 99..., and a wrong check character."""
    draw = key.draw("uscc", value)
    first = f"{value[:2]}99{draw.text(4)}{draw.text(9, USCC_CHARACTERS)}"
    position = USCC_CHARACTERS.index(uscc_check(first))
    return first + USCC_CHARACTERS[(position + 1 + draw.number(30)) % 31]
