"""Postal addresses: hints only, by street and number."""

import re

from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[ADDRESS]", "[地址]")
TRIGGER = re.compile("[0-9\uff10-\uff19](?:号|弄|栋|幢|室|单元)|[0-9] [A-Z]")
NEEDS_DIGIT = True
PATTERN = re.compile(
    r"(?:居?住[在于址][:是]?|地址[:是为]?|位于|寄到|送到|[来去到在])?(?P<value>(?:[\u4e00-\u9fff]{2,8}?(?:省|自治区|市|自治州|县|区|镇|乡)){0,4}[\u4e00-\u9fff]{1,8}?(?:路|街|大道|巷|胡同|弄|村|小区|花园|大厦)"
    r"[\u4e00-\u9fff]{0,4}[0-9]{1,5}(?:号|弄|栋|幢|室|单元)(?:[0-9A-Za-z\u4e00-\u9fff-]{0,8}(?:号楼|栋|幢|单元|室|楼|层))*)"
    r"|\b[0-9]{1,5} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Drive|Court)\b"
)


def grade(match: re.Match[str]) -> bool | None:
    """Always a hint."""
    return False


def stand_in(value: str, key: Key) -> str:
    """A label: a made-up address may be somebody's."""
    number = key.draw("address", value).number(10**6)
    return f"[ADDRESS_{number:06}]" if value.isascii() else f"[地址{number:06}]"
