"""WeChat IDs, after a word that names WeChat."""

import re

from weitiao.data.personal_data.identifier import AnyOf
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[WECHAT]", "[微信号]")
TRIGGER = AnyOf(
    "微信", "微 信", "薇信", "威信", "V信", "v信", "echat", "eChat", "ECHAT", "eixin", "wx", "WX", "vx", "VX", "加v", "加V"
)
NEEDS_DIGIT = False
PATTERN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:微 ?信|[Ww]e[Cc]hat|WECHAT|[Ww]eixin|薇信|威信|[加VvwW][VvXx信])"
    r"(?:(?P<called>号码?|账号|帐号|[ ]?ID|[ ]?id)|加)?"
    r"[ ]?(?:[:是为]|is)?[ ]?(?P<value>[a-zA-Z][-_a-zA-Z0-9]{5,19})(?![-_a-zA-Z0-9@]|\.[A-Za-z0-9])"
    r"|(?<![A-Za-z0-9_])(?P<own>wxid_[a-z0-9]{6,22})(?![A-Za-z0-9_])"
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain if it is called an ID or has a digit or underscore: WeChat Android is a product."""
    if match["own"] or match["called"]:
        return True
    return any(x.isdigit() or x == "_" for x in match["value"]) or None


def stand_in(value: str, key: Key) -> str:
    """Starts with 0; an ID starts with a letter."""
    return "0" + key.draw("wechat", value.lower()).like(value[1:])
