"""Public IP addresses. Those of private, local and documentation networks (RFC 1918, 5737, 3849) identify nobody."""

import ipaddress
import re

from weitiao.data.personal_data.identifier import context
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[IP]", "[IP地址]")
TRIGGER = re.compile("[.:][0-9A-Fa-f]{0,4}[.:]")
NEEDS_DIGIT = True
FIRST = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
PATTERN = re.compile(
    rf"(?:(?<![0-9A-Za-z.])(?<![A-Za-z]/)|(?<=IP)(?<![A-Za-z]IP)|(?<=ip)(?<![A-Za-z]ip))(?:(?P<four>{FIRST}(?:\.{FIRST}){{3}})|(?<!:)[23][0-9A-Fa-f]{{3}}:[0-9A-Fa-f:]{{2,34}})"
    r"(?![0-9A-Za-z]|\.[0-9])"
)
WORDS = re.compile(r"(?<![A-Za-z])ip|地址|服务器|主机|登录|address|host|server|from|client|login|ping", re.IGNORECASE)
VERSION = re.compile(r"版本|version|release|固件|firmware|章|节|§|section|(?<![A-Za-z])v\.?[ ]?$", re.IGNORECASE)
LARGEST_OF_VERSION = 32


def grade(match: re.Match[str]) -> bool | None:
    """Certain if public; small numbers without a word before them are a hint: they may be a version or a section."""
    try:
        address = ipaddress.ip_address(match[0].rstrip(":"))
    except ValueError:
        return None
    if not address.is_global or context(match, VERSION, 10):
        return None
    return not match["four"] or max(map(int, match[0].split("."))) > LARGEST_OF_VERSION or context(match, WORDS)


def stand_in(value: str, key: Key) -> str:
    """An address of the networks for documentation."""
    draw = key.draw("ip", value.lower())
    if ":" in value:
        return "2001:db8::" + ":".join(draw.text(4, "0123456789abcdef") for _ in range(2))
    return ("192.0.2.", "198.51.100.", "203.0.113.")[draw.number(3)] + str(1 + draw.number(254))
