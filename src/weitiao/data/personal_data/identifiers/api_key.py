"""API keys, tokens and passwords: by the prefix that a service gives its keys, or after a word and by their entropy."""

import math
import re
from collections import Counter

from weitiao.data.personal_data.identifier import TOKEN
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[SECRET]", "[密钥]")
TRIGGER = TOKEN
NEEDS_DIGIT = True
PREFIXES = (
    r"sk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,200}",  # Anthropic, OpenAI, OpenRouter, DeepSeek, DashScope
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
    r"LTAI[A-Za-z0-9]{12,26}",  # Alibaba Cloud
    r"AKID[A-Za-z0-9]{13,40}",  # Tencent Cloud
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
    r"glpat-[A-Za-z0-9_-]{20,64}",  # GitLab
    r"xox[abeprs]-[A-Za-z0-9-]{10,250}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,250}",  # Google
    r"hf_[A-Za-z0-9]{30,64}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}",
    r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,250}",  # Stripe
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",  # SendGrid
    r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}",  # JSON Web Tokens
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
)
WORD = (
    r"(?:api[ _-]?key|access[ _-]?key(?:[ _-]?id)?|secret(?:[ _-]?(?:access[ _-]?)?key)?|(?:auth|access|bearer)[ _-]?token"
    r"|token|passw(?:or)?d|pwd|密钥|密码|口令|令牌|授权码)"
)
PATTERN = re.compile(
    r"-----BEGIN (?:[A-Z]{2,9} ){0,2}PRIVATE KEY-----[A-Za-z0-9+/=\s\\:,.-]{20,8000}?"  # \\: in JSON
    rf"-----END (?:[A-Z]{{2,9}} ){{0,2}}PRIVATE KEY-----"
    rf"|(?<![A-Za-z0-9_-])(?P<prefixed>{'|'.join(PREFIXES)})(?![A-Za-z0-9_-])"
    rf"|(?<![A-Za-z])(?i:{WORD})[\"']?[ ]?(?:[:=是为]|=>|is)[ ]?[\"']?"
    r"(?P<value>[A-Za-z0-9+/_=.~-]{15,199}[A-Za-z0-9+/_=~-])(?![A-Za-z0-9+/_=~-])"
)
PLACEHOLDER = re.compile(
    r"EXAMPLE|x{5}|X{5}|your|YOUR|<|\.\.\.|(.)\1{7}|placeholder|123456789|getenv|environ|process\.env|config"
)
MIN_ENTROPY = 3.0  # bits per character of the value itself


def grade(match: re.Match[str]) -> bool | None:
    """Certain unless it is a placeholder, or the value after a word is one of words."""
    if match["value"] is None:
        return None if PLACEHOLDER.search(match[0]) else True
    value = match["value"]
    mixed = any(x.isdigit() for x in value) and any(x.isalpha() for x in value)
    return (mixed and not PLACEHOLDER.search(value) and entropy(value) >= MIN_ENTROPY) or None


def entropy(text: str) -> float:
    """Bits per character, by the text's own frequencies.

    >>> entropy("aabb")
    1.0
    """
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def stand_in(value: str, key: Key) -> str:
    """The prefix stays; the rest is drawn, and ends in EXAMPLE as in AWS's own documentation."""
    draw = key.draw("api_key", value)
    if value.startswith("-----"):
        head, _, tail = value[5:].partition("-----")
        body, dashes, end = tail.rpartition("-----END")
        return f"-----{head}-----{draw.like(body)[:-8]}EXAMPLE\n{dashes}{end}"
    start = re.match(
        r"(?:sk-(?:ant-|proj-|svcacct-|or-v1-)?|[A-Za-z]{2,6}_(?:live_|test_|pat_)?|[A-Z]{4}|[a-z]{2,5}-)?", value
    )
    position = start.end() if start else 0
    return value[:position] + draw.like(value[position:-7]) + "EXAMPLE"
