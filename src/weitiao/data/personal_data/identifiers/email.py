"""E-mail addresses. Those of reserved domains (RFC 2606) are nobody's."""

import re

from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[EMAIL]", "[邮箱]")
TRIGGER = re.compile("[@\uff20]")
NEEDS_DIGIT = False
PATTERN = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9-]|\.[A-Za-z0-9])"
)
RESERVED = re.compile(r"(?:[@.]example\.(?:com|net|org)|\.(?:example|test|invalid|localhost))$", re.IGNORECASE)


def grade(match: re.Match[str]) -> bool | None:
    """Certain, unless the domain is reserved or it is the address of a Git server."""
    if RESERVED.search(match[0]) or match[0].startswith("git@"):
        return None
    return True


def stand_in(value: str, key: Key) -> str:
    """Another name at example.com."""
    name = value.partition("@")[0]
    return key.draw("email", value.lower()).like(name.lower()) + "@example.com"
